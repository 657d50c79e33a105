"""The lengths of a schedule: shares of the run, or steps. Nothing here imports JAX."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bigjax import batch_ramp

if TYPE_CHECKING:
    from bigjax.config import Config, OptimConfig

DECAYING = ("linear", "cosine", "wsd")
"""The schedules that read `optim.decay`."""


def lengths(cfg: "OptimConfig", steps: int) -> tuple[int, int]:
    """Return the steps of warm-up and of decay in a run of `steps`; where its batch grows, all count full batches.

    A share is rounded to whole steps, and is one at least. Where both are shares, decay gives way to the rounding.
    """
    warmup, decay = (_in_steps(length, steps) for length in (cfg.warmup, cfg.decay))
    return warmup, min(decay, steps - warmup) if max(cfg.warmup, cfg.decay) < 1 else decay


def _in_steps(length: float, steps: int) -> int:
    return max(round(length * steps), 1) if 0 < length < 1 else int(length)


def full_batches(cfg: "Config") -> int:
    """Return the steps of a run, or where its batch grows how many full batches have as many rows."""
    if not cfg.train.ramp_batch_size:
        return cfg.train.steps
    return last_full_batch(batch_ramp.build(cfg), cfg.train.steps) + 1


def last_full_batch(ramp: batch_ramp.BatchRamp, steps: int) -> int:
    """Return how many full batches the rows before the last of `steps` steps make."""
    return ramp.rows_before(steps - 1) // ramp.sizes[-1]


def problems(cfg: "Config") -> Iterator[str]:
    """Yield one sentence for every length that does not fit into the run; the ramp of its batch must be sound."""
    optim = cfg.optim
    given = {f"optim.{name}": getattr(optim, name) for name in ("warmup", "decay")}
    for name, length in given.items():
        if length > 1 and length != int(length):
            yield (
                f"{name}={length:g} is neither a share of the run, below 1, nor whole steps: set {name}={round(length)}"
            )
            return
    if optim.schedule not in DECAYING:
        del given["optim.decay"]
    steps = full_batches(cfg)
    taken = sum(lengths(optim, steps)[: len(given)])
    shares = sum(given.values()) if max(given.values()) < 1 else 0
    said = " and ".join(f"{name}={length:g}" for name, length in given.items() if length)
    if shares > 1 + 1e-9:
        yield f"{said} are more than the whole run: set shares whose sum is at most 1, such as 0.1 and 0.2"
    elif taken > steps:
        room = f"train.steps={steps}" if steps == cfg.train.steps else f"a run of {steps} full batches"
        longest = max(given, key=lambda name: given[name])
        yield (f"{room} has no room for {said}, {taken} steps: set {longest} to a share of the run, as {longest}=0.1")
    if optim.schedule == "inverse_sqrt" and not optim.warmup:
        yield (
            "optim.schedule='inverse_sqrt' falls from where its warm-up ends, but optim.warmup=0: set "
            "optim.warmup=0.01, a share of the run, or take optim.schedule='constant'"
        )


def notes(cfg: "Config") -> Iterator[str]:
    """Yield one sentence for every length that is not read."""
    if cfg.optim.decay and cfg.optim.schedule not in DECAYING:
        yield f"optim.decay={cfg.optim.decay:g} is not read by optim.schedule={cfg.optim.schedule!r}"
