"""Mixtures that change: how many of the first k rows of a run come from each source, as a pure function of k.

A run is a row of stages, in each of which sources are drawn from in a fixed proportion (`order.drawn`). A linear change
is a flight of short stages, each with the proportion of its middle. Where a source has been read as often as it may be,
a stage ends, and the others go on without it, by their weights. All of this is known before the first step.
"""

import bisect
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bigjax.config import Config
from bigjax.config.mixture import Knot, knots
from bigjax.data.batches.shares import drawn, mixture_shares
from bigjax.data.errors import DataError

PIECES = 1000
"""Stages of a linear change between two of its ends."""


class Stage(NamedTuple):
    """Rows from `first` on, before which `counts` rows of each source came, in the proportion of `shares`."""

    first: int
    counts: tuple[int, ...]
    shares: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """The stages of a run.

    Attributes:
      stages: in order, the first from row 0. end: number of rows until no source may be read any more, None for never.
    """

    stages: tuple[Stage, ...]
    end: int | None = None

    def drawn(self, k: int) -> list[int]:
        """Return how many of the first `k` rows come from each source."""
        stage = self.stages[bisect.bisect_right(self.stages, k, key=lambda stage: stage.first) - 1]
        return [
            before + count for before, count in zip(stage.counts, drawn(k - stage.first, stage.shares), strict=True)
        ]

    def __str__(self) -> str:
        content = json.dumps([[stage.first, stage.shares] for stage in self.stages])
        return f"{len(self.stages)} stages, sha256 {hashlib.sha256(content.encode()).hexdigest()[:12]}"


def mixture_of(
    cfg: Config, rows: Sequence[int], rows_before: Callable[[int], int]
) -> tuple[list[float], Mixture | None]:
    """Return the weights at the first step, empty for the sizes, and the mixture of a run if it changes.

    Args:
      rows: number of rows of each source. rows_before: rows of the batches before one.

    Raises:
      DataError: sources may not be read as often as the run is long.
    """
    data = cfg.data
    weights = [epochs * count for epochs, count in zip(data.epochs, rows, strict=False)] or list(data.weights)
    if not data.later_weights and not any(data.max_epochs):
        return weights, None
    caps = [
        int(Fraction(str(epochs)) * count) if epochs else None
        for epochs, count in zip(data.max_epochs, rows, strict=False)
    ]
    later, linear = knots(data.later_weights, cfg.train.steps), data.weight_change == "linear"
    mixture = build_mixture(weights or rows, later, linear, caps or [None] * len(rows), rows_before)
    if mixture.end is not None and mixture.end < rows_before(cfg.train.steps):
        lasts = bisect.bisect_right(range(cfg.train.steps), mixture.end, key=rows_before) - 1
        raise DataError(
            f"data.max_epochs={data.max_epochs} ends the data after {mixture.end:,} rows, which last for {lasts:,} of "
            f"train.steps={cfg.train.steps:,}: lower that, or raise data.max_epochs"
        )
    return weights, mixture


def build_mixture(
    weights: Sequence[float],
    later: Sequence[Knot],
    linear: bool,
    caps: Sequence[int | None],
    rows_before: Callable[[int], int],
) -> Mixture:
    """Return the mixture of a run.

    Args:
      weights: of each source at the first step. later: weights from a step on, or, if `linear`, at a step, between
        which and the ones before it they change evenly, as shares of the whole.
      caps: rows that each source may be read, None for any number.
      rows_before: rows of the batches before one.
    """
    pieces: list[tuple[int, tuple[int, ...]]] = []
    here, now = 0, _shares(weights)
    for knot in later:
        then = _shares(knot.weights)
        if linear:
            count = min(knot.step - here, PIECES)
            starts = [rows_before(here + (knot.step - here) * piece // count) for piece in range(count + 1)]
            pieces += zip(starts, _flight(now, then, np.diff(starts).tolist()), strict=False)
        else:
            pieces.append((rows_before(here), _smallest(now)))
        here, now = knot.step, then
    pieces.append((rows_before(here), _smallest(now)))
    return _capped(pieces, caps)


def _shares(weights: Sequence[float]) -> list[Fraction]:
    whole = mixture_shares(weights)
    return [Fraction(share, sum(whole)) for share in whole]


def _smallest(shares: Sequence[Fraction]) -> tuple[int, ...]:
    scale = math.lcm(*(share.denominator for share in shares))
    return tuple(int(share * scale) for share in shares)


def _flight(now: Sequence[Fraction], then: Sequence[Fraction], lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the rows of each source in each stage of a change, which sum to its length.

    What a stage is short of by rounding the next one makes good: sums are never far from what was asked for.
    """
    owed = [Fraction(0)] * len(now)
    for stage, length in enumerate(lengths):
        middle = Fraction(2 * stage + 1, 2 * len(lengths))
        owed = [debt + (a + (b - a) * middle) * length for debt, a, b in zip(owed, now, then, strict=True)]
        rows = [max(math.floor(debt), 0) for debt in owed]
        while sum(rows) != length:
            change = 1 if sum(rows) < length else -1
            able = [i for i in range(len(rows)) if change > 0 or rows[i]]
            rows[max(able, key=lambda i: change * (owed[i] - rows[i]))] += change
        owed = [debt - count for debt, count in zip(owed, rows, strict=True)]
        yield tuple(rows)


def _capped(pieces: Sequence[tuple[int, tuple[int, ...]]], caps: Sequence[int | None]) -> Mixture:
    counts, stages, used_up = [0] * len(caps), [], set()
    for (first, shares), after in zip(pieces, [*(first for first, _ in pieces[1:]), None], strict=True):
        while after is None or first < after:
            open_shares = tuple(0 if i in used_up else share for i, share in enumerate(shares))
            if not any(open_shares):
                return Mixture(tuple(stages), first)
            stages.append(Stage(first, tuple(counts), open_shares))
            end = _first_full(counts, open_shares, caps, None if after is None else after - first)
            if end is None:
                break
            counts = [a + b for a, b in zip(counts, drawn(end, open_shares), strict=True)]
            first += end
            used_up |= {i for i, cap in enumerate(caps) if cap is not None and counts[i] >= cap}
    return Mixture(tuple(stages))


def _first_full(
    counts: Sequence[int], shares: tuple[int, ...], caps: Sequence[int | None], limit: int | None
) -> int | None:
    """Return after how many rows of a stage a source is used up, or the stage ends; None if neither happens."""
    found = [] if limit is None else [limit]
    for i, cap in enumerate(caps):
        if cap is None or not shares[i]:
            continue
        low, high = 0, (cap - counts[i] + 2) * sum(shares) // shares[i] + sum(shares)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if counts[i] + drawn(middle, shares)[i] >= cap else (middle + 1, high)
        found.append(low)
    return min(found, default=None)
