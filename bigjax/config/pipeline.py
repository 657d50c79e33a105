"""How a batch goes through the stages into which the mesh axis `stage` splits the layers of a model.

With p stages, m microbatches and v repeats stage s works in tick t on microbatch (t - s) mod m, in the repeat
(t - s) div m. A step takes v m + p - 1 ticks, of which each stage works in v m; the rest is the bubble (Huang et al.
2019, section 2.3; Narayanan et al. 2021, section 2.2).
"""

from collections.abc import Iterator
from typing import Any

MICROBATCHES_A_STAGE = 4
"""With four times as many microbatches as stages the bubble was found to be negligible (Huang et al. 2019, section
2.3)."""


def problems(mesh: Any) -> Iterator[str]:
    """Yield what a mesh without stages has no use for, and microbatches that its stages cannot share evenly."""
    if mesh.stage == 1:
        for name, default in (("pipeline_microbatches", 0), ("pipeline_repeats", 1)):
            if (value := getattr(mesh, name)) != default:
                yield (
                    f"mesh.{name}={value} is for a pipeline of stages, but mesh.stage=1: set mesh.stage=2, or "
                    f"mesh.{name}={default}"
                )
    elif mesh.stage > 1 and (problem := microbatches_problem(mesh.pipeline_microbatches, mesh.stage)):
        yield problem


def microbatches_problem(microbatches: int, stages: int) -> str | None:
    """Return why the stages cannot share the microbatches evenly, None if they can."""
    if microbatches % stages == 0:
        return None
    below = microbatches // stages * stages
    near = f"{below} or {below + stages}" if below else f"{stages}"
    return (
        f"mesh.pipeline_microbatches={microbatches} is not a multiple of mesh.stage={stages}, which share them: set "
        f"mesh.pipeline_microbatches={near}, or 0 for as many as the rows allow"
    )


def layers_problem(num_layers: int, stages: int, repeats: int, period: int = 1) -> str | None:
    """Return why so many layers do not fall into equal runs, one for each repeat of each stage, None if they do.

    `period` is the number of layers after which their kinds repeat.
    """
    runs = stages * repeats
    if num_layers % (runs * period) == 0:
        return None
    product = f"mesh.stage={stages}" + (f" * mesh.pipeline_repeats={repeats} = {runs}" if repeats > 1 else "")
    kinds = f" times the {period} layers after which their kinds repeat" if period > 1 else ""
    near = max(round(num_layers / (runs * period)), 1) * runs * period
    least = 1 if repeats == 1 else 2
    fewer = [n for n in range(stages - 1, least - 1, -1) if num_layers % (n * repeats * period) == 0]
    other = f", or mesh.stage={fewer[0]}" if fewer else ""
    return f"model.num_layers={num_layers} is not divisible by {product}{kinds}: set model.num_layers={near}{other}"


def microbatches_a_stage(asked: int, stages: int, rows: int) -> int:
    """Return how many microbatches each stage brings in of the `rows` that it has of a batch, at most `rows`.

    `asked` is `mesh.pipeline_microbatches`. Where it does not divide the rows, as of a batch that is not one of
    training, there are fewer.
    """
    most = asked // stages or MICROBATCHES_A_STAGE
    return next(count for count in range(min(most, rows), 0, -1) if rows % count == 0)


def ticks(stages: int, microbatches: int, repeats: int) -> int:
    """Return how many ticks a step takes, v m + p - 1; in p - 1 of them a stage has nothing to work on."""
    return repeats * microbatches + stages - 1
