"""The lengths of a schedule: shares of the run, or steps. Nothing here imports JAX."""

from collections.abc import Iterator
from typing import Any

DECAYING = ("linear", "cosine", "wsd")
"""The schedules that read `optim.decay`."""


def lengths(cfg: Any, steps: int) -> tuple[int, int]:
    """Return the steps of warm-up and of decay in a run of `steps`; where its batch grows, all count full batches.

    A share is rounded to whole steps, and is one at least. A share of decay gives way where rounding would have it fill
    the run, or meet a share of warm-up: a run of a single step would have the last rate only.
    """
    warmup, decay = (_in_steps(length, steps) for length in (cfg.warmup, cfg.decay))
    if cfg.decay < 1:
        decay = min(decay, steps - (max(warmup, 1) if cfg.warmup < 1 else 1))
    return warmup, decay


def _in_steps(length: float, steps: int) -> int:
    return max(round(length * steps), 1) if 0 < length < 1 else int(length)


def problems(cfg: Any) -> Iterator[str]:
    """Yield one sentence for every length that cannot be, or does not fit into the run."""
    optim = cfg.optim
    for name in ("warmup", "decay"):
        length = getattr(optim, name)
        if length > 1 and length != int(length):
            whole = round(length)
            yield (
                f"optim.{name}={length:g} is neither a share of the run, below 1, nor whole steps: set "
                f"optim.{name}={whole}"
            )
            return
    yield from too_long(optim, cfg.train.steps, f"train.steps={cfg.train.steps}")
    if optim.schedule == "inverse_sqrt" and not optim.warmup:
        yield (
            "optim.schedule='inverse_sqrt' falls from where its warm-up ends, but optim.warmup=0: set "
            "optim.warmup=0.01, a share of the run, or take optim.schedule='constant'"
        )


def too_long(cfg: Any, steps: int, room: str) -> Iterator[str]:
    """Yield a sentence if warm-up and decay do not fit into `steps`, which are called `room`."""
    given = {"optim.warmup": cfg.warmup} | ({"optim.decay": cfg.decay} if cfg.schedule in DECAYING else {})
    taken = sum(lengths(cfg, steps)[: len(given)])
    said = " and ".join(f"{name}={length:g}" for name, length in given.items() if length)
    if max(given.values()) < 1 and sum(given.values()) > 1 + 1e-9:
        yield f"{said} are more than the whole run: set shares whose sum is at most 1, such as 0.1 and 0.2"
    elif taken > steps:
        longest = max(given, key=lambda name: given[name])
        yield f"{room} has no room for {said}, {taken} steps: set {longest} to a share of the run, as {longest}=0.1"


def notes(cfg: Any) -> Iterator[str]:
    """Yield one sentence for every length that is not read."""
    if cfg.optim.decay and cfg.optim.schedule not in DECAYING:
        yield f"optim.decay={cfg.optim.decay:g} is not read by optim.schedule={cfg.optim.schedule!r}"
