"""Are two settings different, or is it the seed? Intervals over seeds, a noise floor, and a verdict for every row.

Losses of one setting over its seeds are taken as draws from a normal distribution. Lower is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["baseline", "better", "worse", "within noise", "no noise floor"]

WELCH_RUNS = 3
"""Seeds from which a setting's own spread is used; two say next to nothing about it (t of one degree: 12.7)."""

LEVEL = 0.95
"""Coverage of every interval; a difference counts if its adjusted p-value is below 1 - LEVEL."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval, which are None where there is nothing to know them from."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class NoiseFloor:
    """The standard deviation over seeds, pooled over `settings` settings with `dof` degrees of freedom in all.

    The spread is assumed to be the same in every setting, and is used where a setting has few runs.
    """

    sd: float
    dof: int
    settings: int

    def half_width(self, scale: float) -> float:
        """Return half the 95 % interval of an estimate whose standard error is `scale` standard deviations."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.dof)) * self.sd * scale

    @property
    def detectable(self) -> float:
        """The difference between two single runs below which they are within noise."""
        return self.half_width(math.sqrt(2))


@dataclass(frozen=True)
class Row:
    """One setting beside the baseline.

    Attributes:
        runs: how many seeds there are.
        mean: over seeds, with its t interval: by its own spread from `WELCH_RUNS` seeds on, else by the pooled one.
        difference: of the means, setting minus baseline, with its interval; None of the baseline itself.
        p, p_adjusted: two-sided, of no difference; adjusted by Holm over all rows. None without a noise floor.
        test: what the interval of the difference and p are by.
    """

    runs: int
    mean: Interval
    difference: Interval | None
    p: float | None
    p_adjusted: float | None
    test: Literal["welch", "pooled", "none"]
    verdict: Verdict


def t_interval(values: np.ndarray) -> Interval:
    """Return mean ± t s / sqrt(n) of `(n,)` values, with Student's t of n - 1 degrees of freedom (Student 1908)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def noise_floor(groups: Sequence[np.ndarray]) -> NoiseFloor | None:
    """Return the spread over seeds pooled over the groups of more than one value; None if there is no such group."""
    repeated = [group for group in groups if len(group) > 1]
    if not repeated:
        return None
    dof = sum(len(group) - 1 for group in repeated)
    squares = sum(float(np.var(group, ddof=1)) * (len(group) - 1) for group in repeated)
    return NoiseFloor(math.sqrt(squares / dof), dof, len(repeated))


def welch(a: np.ndarray, b: np.ndarray) -> tuple[Interval, float]:
    """Return mean(a) - mean(b) with its interval, and p of no difference, for unequal variances (Welch 1947).

    The degrees of freedom are those of Welch and Satterthwaite. Each of a and b has two values or more.
    """
    parts = np.array([np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)])
    difference, error = float(np.mean(a) - np.mean(b)), math.sqrt(parts.sum())
    if error == 0:
        return _by_error(difference, 0.0, 1.0)
    shares = parts / parts.sum()  # shares, because the squares of tiny variances underflow
    return _by_error(difference, error, float(1 / (shares**2 / [len(a) - 1, len(b) - 1]).sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values adjusted so that the chance of any false finding is bounded (Holm 1979)."""
    order, adjusted, largest = np.argsort(p), [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def ablate(groups: Sequence[np.ndarray], baseline: int) -> list[Row]:
    """Return a row for each group of finite losses `(n,)`, compared with the group at index `baseline`.

    Where both have `WELCH_RUNS` seeds, the test is Welch's; elsewhere it is Student's with the pooled noise floor.
    """
    floor, base = noise_floor(groups), groups[baseline]
    means = [_mean(group, floor) for group in groups]
    tests = [_compare(group, base, floor) if i != baseline else None for i, group in enumerate(groups)]
    known = {i: test[1] for i, test in enumerate(tests) if test is not None and test[1] is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    rows = []
    for i, (group, mean, test) in enumerate(zip(groups, means, tests, strict=True)):
        if test is None:
            rows.append(Row(len(group), mean, None, None, None, "none", "baseline"))
            continue
        difference, p, name = test
        rows.append(
            Row(len(group), mean, difference, p, adjusted.get(i), name, _verdict(difference.value, adjusted.get(i)))
        )
    return rows


def _mean(group: np.ndarray, floor: NoiseFloor | None) -> Interval:
    if len(group) >= WELCH_RUNS or floor is None:
        return t_interval(group)
    mean, half = float(np.mean(group)), floor.half_width(1 / math.sqrt(len(group)))
    return Interval(mean, mean - half, mean + half)


def _compare(
    group: np.ndarray, base: np.ndarray, floor: NoiseFloor | None
) -> tuple[Interval, float | None, Literal["welch", "pooled", "none"]]:
    if min(len(group), len(base)) >= WELCH_RUNS:
        return *welch(group, base), "welch"
    difference = float(np.mean(group) - np.mean(base))
    if floor is None:
        return Interval(difference), None, "none"
    error = floor.sd * math.sqrt(1 / len(group) + 1 / len(base))
    return *_by_error(difference, error, floor.dof), "pooled"


def _by_error(difference: float, error: float, dof: float) -> tuple[Interval, float]:
    half = float(stats.t.ppf((1 + LEVEL) / 2, dof)) * error
    if error == 0:  # seeds that change nothing: any difference is one
        return Interval(difference, difference, difference), float(difference == 0)
    return Interval(difference, difference - half, difference + half), float(
        2 * stats.t.sf(abs(difference) / error, dof)
    )


def _verdict(difference: float, p_adjusted: float | None) -> Verdict:
    if p_adjusted is None:
        return "no noise floor"
    if p_adjusted >= 1 - LEVEL:
        return "within noise"
    return "better" if difference < 0 else "worse"
