"""Factors of a sweep: grids, pairs, random draws, seeds and ablations, each a list of changes to the config."""

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.errors import UserError


class SweepError(UserError):
    """The points of a sweep cannot be run as they are."""


@dataclass(frozen=True)
class Change:
    """Fields of the config by dotted path, with the values that one point gives them.

    `label` is what a table calls it instead of the fields in `labelled`.
    """

    values: Mapping[str, Any]
    label: str = ""
    labelled: tuple[str, ...] = ()


Factor = Sequence[Change]


@dataclass(frozen=True)
class Uniform:
    """A number between `low` and `high`; evenly on a log scale if `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        ends = (self.low, self.high)
        numbers = all(isinstance(end, (int, float)) and np.isfinite(end) for end in ends)
        if not numbers or not self.low < self.high or (self.log and self.low <= 0):
            raise SweepError(
                f"{self} is no range{' on a log scale' if self.log else ''}: low must be below high, both numbers"
                f"{' above 0' if self.log else ''}"
            )

    def at(self, u: float) -> float:
        """Return the value at the quantile `u`."""
        if self.log:
            return float(self.low * (self.high / self.low) ** u)
        return float(self.low + u * (self.high - self.low))


@dataclass(frozen=True)
class Choice:
    """One of some values, all as likely."""

    options: tuple[Any, ...]

    def __post_init__(self):
        if not self.options:
            raise SweepError("a choice needs at least one option")

    def at(self, u: float) -> Any:
        """Return the value at the quantile `u`."""
        return self.options[min(int(u * len(self.options)), len(self.options) - 1)]


Distribution = Uniform | Choice


def uniform(low: float, high: float) -> Uniform:
    """Return the uniform distribution."""
    return Uniform(low, high)


def log_uniform(low: float, high: float) -> Uniform:
    """Return the distribution whose logarithm is uniform."""
    return Uniform(low, high, log=True)


def choice(options: Iterable[Any]) -> Choice:
    """Return the distribution over some values, all as likely."""
    return Choice(tuple(options))


def grid(values: Mapping[str, Sequence[Any]]) -> list[Change]:
    """Return every combination of values, the last field the fastest.

    Raises:
      SweepError: a field has no list of values, or an empty one.
    """
    values = _columns("grid", values)
    return [Change(dict(zip(values, row, strict=True))) for row in itertools.product(*values.values())]


def zip_(values: Mapping[str, Sequence[Any]]) -> list[Change]:
    """Return the first values together, the second together, and so on.

    Raises:
      SweepError: as `grid`, or there are not equally many of each.
    """
    values = _columns("zip_", values)
    lengths = {path: len(column) for path, column in values.items()}
    if len(set(lengths.values())) > 1:
        raise SweepError(f"zip_ needs as many values of every field, not {lengths}")
    return [Change(dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]


def random(n: int, seed: int, space: Mapping[str, Distribution]) -> list[Change]:
    """Return `n` random points (Bergstra & Bengio 2012).

    A field's draws depend on the seed and its path only: more points, or another field, leave those there are.

    Raises:
      SweepError: there is no point or no such seed, or a field has no distribution.
    """
    _check_count(f"random({n}, ...)", n)
    if not isinstance(seed, int) or seed < 0:
        raise SweepError(f"random(..., seed={seed!r}) needs a whole number from 0 on")
    draws = {}
    for path, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise SweepError(
                f"random needs uniform(...), log_uniform(...) or choice(...) for {path}, not {distribution!r}"
            )
        generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
        draws[path] = [distribution.at(u) for u in generator.random(n)]
    return [Change({path: values[i] for path, values in draws.items()}) for i in range(n)]


def seeds(k: int, first: int = 0) -> list[Change]:
    """Return `k` seeds.

    Raises:
      SweepError: there is none.
    """
    _check_count(f"seeds({k})", k)
    return [Change({"train.seed": seed}) for seed in range(first, first + k)]


def branches(run: str, steps: Sequence[int], decay: float = 0.2) -> list[Change]:
    """Return a point for each total length in `steps`, which branches off `run` to decay over the last share of it.

    One run at a constant rate so gives models of many token budgets (Hägele et al. 2024, section 4). It needs a
    checkpoint of the step where each decay begins, as with a suitable `checkpoint.keep_every_steps`.

    Raises:
      SweepError: there is no length, one is no whole number above 1, or the share leaves nothing before the decay.
    """
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay < 1:
        raise SweepError(f"branches(..., decay={decay!r}) needs a share of each length, above 0 and below 1")
    hidden, found = ("init_state", "optim.schedule", "optim.decay"), []
    for (total,) in zip(*_columns("branches", {"train.steps": steps}).values(), strict=True):
        if not isinstance(total, int) or isinstance(total, bool) or total < 2:
            raise SweepError(f"branches needs whole numbers of steps above 1, not {total!r}")
        length = max(round(decay * total), 1)
        if length == total:
            raise SweepError(f"branches(..., decay={decay}) leaves none of {total} steps before the decay")
        start = f"{run}@{total - length}"
        values = {"train.steps": total, "init_state": start, "optim.schedule": "wsd", "optim.decay": length}
        found.append(Change(values, labelled=hidden))
    return found


def ablation(base: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """Return `base`, called baseline, and a point for every row, which changes one factor of it.

    Raises:
      SweepError: the rows have no names, or one that is taken.
    """
    if not isinstance(rows, Mapping):
        raise SweepError(f"ablation needs a dict of named rows, not {rows!r}")
    if "baseline" in rows:
        raise SweepError("a row of the ablation is called baseline, as its base is: give it another name")
    points = {"baseline": dict(base)} | {name: {**base, **changes} for name, changes in rows.items()}
    return [Change(values, name, tuple(values)) for name, values in points.items()]


def _columns(what: str, values: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
    """Return lists of values by field, NumPy's numbers as Python's."""
    if not isinstance(values, Mapping):
        raise SweepError(f"{what} takes a dict of fields and lists of values, not {values!r}")
    columns = {}
    for path, column in values.items():
        if isinstance(column, str) or not isinstance(column, Iterable):
            raise SweepError(f"{what} needs a list of values for {path}, not {column!r}")
        columns[path] = [value.item() if isinstance(value, np.generic) else value for value in column]
        if not columns[path]:
            raise SweepError(f"{what} has no value for {path}, and so no point")
    return columns


def _check_count(what: str, count: int) -> None:
    if not isinstance(count, int) or count < 1:
        raise SweepError(f"{what} is no point: it needs a whole number from 1 on")
