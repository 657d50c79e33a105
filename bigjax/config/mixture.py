"""What a run has of each of its sources, and how that changes. Nothing here imports JAX."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_WEIGHT = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_KNOT = re.compile(rf"\s*(?:(\d+(?:\.\d+)?)\s*%|(\d+))\s*:\s*({_WEIGHT}(?:\s*/\s*{_WEIGHT})*)\s*", re.IGNORECASE)

FORM = "WHEN:WEIGHT/WEIGHT/..., as in '50%:1/3' or '2000:1/3'"


class Knot(NamedTuple):
    """Weights from a step on.

    Attributes:
      step: which. weights: of the sources, as numbers print.
    """

    step: int
    weights: tuple[float, ...]


def knots(later: tuple[str, ...], steps: int) -> tuple[Knot, ...]:
    """Return what `data.later_weights` says for a run of `steps`; entries that are not of its form are left out."""
    found = []
    for entry in later:
        if match := _KNOT.fullmatch(entry):
            step = round(float(match[1]) / 100 * steps) if match[1] else int(match[2])
            found.append(Knot(step, tuple(map(float, match[3].split("/")))))
    return tuple(found)


def problems(cfg: Any) -> Iterator[str]:
    """Yield one sentence for everything that weights, epochs and caps of sources ask for and cannot have."""
    data, steps = cfg.data, cfg.train.steps
    count = len(data.sources)
    for name in ("weights", "epochs", "max_epochs"):
        values = getattr(data, name)
        if values and len(values) != count:
            yield f"data.{name} has {len(values)} entries, but data.sources has {count}"
    if not all(weight > 0 for weight in data.weights):
        yield f"data.weights={data.weights} must all be above 0"
    if not all(epochs > 0 for epochs in data.epochs):
        yield f"data.epochs={data.epochs} must all be above 0: leave a source out of data.sources instead"
    if not all(epochs >= 0 for epochs in data.max_epochs):
        yield f"data.max_epochs={data.max_epochs} must be 0, for no bound, or more"
    if data.weights and data.epochs:
        yield (
            f"data.weights={data.weights} and data.epochs={data.epochs} both say how much of each source: leave one out"
        )
    mixed = {name: getattr(data, name) for name in ("weights", "epochs", "max_epochs", "later_weights")}
    for name, values in mixed.items():
        if values and data.order == "contiguous":
            yield (
                f"data.{name}={values} mix shuffled rows, but data.order='contiguous' reads every source from end to "
                "end: leave one of them out"
            )
    yield from _knot_problems(data, count, steps)


def _knot_problems(data: Any, count: int, steps: int) -> Iterator[str]:
    before = 0
    if data.weight_change == "linear" and not data.later_weights:
        yield "data.weight_change='linear' goes to data.later_weights, which is empty: set it, or leave it out"
    for entry in data.later_weights:
        found = knots((entry,), steps)
        if not found:
            yield f"data.later_weights has {entry!r}, which is not {FORM}"
            return
        (knot,) = found
        if len(knot.weights) != count or not any(knot.weights):
            yield (
                f"data.later_weights has {entry!r} with {len(knot.weights)} weights: give one for each of the {count} "
                "data.sources, 0 for none, but not all of them 0"
            )
        if not before < knot.step <= steps:
            yield (
                f"data.later_weights has {entry!r}, which is step {knot.step}: name later and later steps, up to "
                f"train.steps={steps}"
            )
        before = knot.step
