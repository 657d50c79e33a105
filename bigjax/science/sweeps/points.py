"""The points of a sweep: what a config file's `sweep(add)` adds, each resolved, checked and identified before any runs.

    def sweep(add):
        add(grid({"optim.lr": [1e-3, 3e-3], "model.d_model": [64, 128]}), seeds(3), **{"train.steps": 200})

A factor is a list of `Change`; `add` crosses the factors it is given. A point is the base config with its changes, and
its identity is the fingerprint of its maths: two points that agree there are one run. Points start from the whole state
of a run with `branches("runs/stable", [1000, 2000])`, or with `init_state` among the fields of any other factor.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from bigjax.config import Config, paths, strict
from bigjax.config import fields as schema
from bigjax.data.errors import DataError
from bigjax.errors import ConfigError
from bigjax.run import identity
from bigjax.science.sweeps.factors import Change, Factor, SweepError

SCALARS = (
    "train.seed",
    "optim.lr",
    "optim.muon_lr",
    "optim.schedule",
    "optim.warmup",
    "optim.decay",
    "optim.end_lr_ratio",
    "optim.weight_decay",
    "model.dropout",
    "model.init_std",
)
"""Fields in which points may differ and still be trained by one compiled program, which has them as arrays."""

MAX_PROBLEMS = 10
"""Points whose mistakes are listed; of others only the number is."""


@dataclass(frozen=True, eq=False)
class Point:
    """One run of a sweep.

    Attributes:
      number: from 1, in the order they were added.
      name: what tells it from the others, e.g. `lr=0.001,seed=2`.
      values: the fields it changes, by path.
      cfg: its config.
      fingerprint: of that.
      label: of the factors, e.g. the row of an ablation.
    """

    number: int
    name: str
    values: Mapping[str, Any]
    cfg: Config = field(repr=False)
    fingerprint: str
    label: str = ""

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{re.sub(r'[^A-Za-z0-9_.,=+-]+', '-', self.name)[:100]}-{self.fingerprint[:8]}"


class Adder:
    """The `add` that `sweep(add)` is called with: `add(factor, ..., **changes)`."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def __call__(self, *factors: Factor, **values: Any) -> None:
        for factor in factors:
            if not (isinstance(factor, (list, tuple)) and all(isinstance(change, Change) for change in factor)):
                raise SweepError(f"add takes grid(...) and the like, and fields as **{{path: value}}, not {factor!r}")
        for row in itertools.product(*factors, [Change(values)]):
            counts = Counter(path for change in row for path in change.values)
            if twice := [path for path, count in counts.items() if count > 1]:
                raise SweepError(f"{twice[0]} is set by two factors of one add(...): which of them counts?")
            together = {path: value for change in row for path, value in change.values.items()}
            labelled = tuple(path for change in row for path in change.labelled)
            self.changes.append(Change(together, " ".join(change.label for change in row if change.label), labelled))


def collect(sweep: Callable[[Adder], None], base: ConfigDict) -> list[Point]:
    """Return the points of a sweep over `base`, all of them resolved and checked.

    Raises:
      SweepError: there is none, a field is wrong, or two points are the same run; names the points.
    """
    add = Adder()
    sweep(add)
    return resolve(add.changes, base)


def resolve(changes: Sequence[Change], base: ConfigDict) -> list[Point]:
    """Return the points that are `base` with each of `changes`, named by the fields in which they differ.

    Raises:
      SweepError: as `collect`.
    """
    if not changes:
        raise SweepError("the sweep has no points: its sweep(add) calls no add(...) that adds one")
    shown = _distinguishing(changes)
    found, problems = [], []
    for number, change in enumerate(changes, 1):
        try:
            found.append(point_of(number, change, base, shown))
        except ConfigError as error:
            problems.append(f"point {number} of {len(changes)} ({_describe(change, change.values)}): {error}")
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"... and {len(problems) - MAX_PROBLEMS} points more"]
    if problems:
        raise SweepError("\n".join(problems))
    _check_collisions(found)
    return found


def explain(cfg: Config, others: Iterable[Config]) -> str:
    """Return in which maths fields a config differs from the nearest of others, e.g. `optim.lr 0.0003 → 0.0006`."""
    differences = [[d for d in strict.diff(other, cfg) if not d.plumbing] for other in others]
    if not differences:
        return "the first run here"
    return ", ".join(f"{found.path} {found.a!r} → {found.b!r}" for found in min(differences, key=len))


def without_scalars(cfg: Config) -> Config:
    """Return a config with all of `SCALARS` at one value, the same for configs that one program can train.

    Whether there is dropout at all stays: back ends differ in that.
    """
    nested, defaults = strict.to_dict(cfg), strict.to_dict(Config())
    for path in SCALARS:
        section, name = path.split(".")
        nested[section][name] = defaults[section][name]
    nested["optim"]["weight_decay"] = 0.0  # the only value that every optimizer takes under muP
    nested["model"]["dropout"] = 0.5 if cfg.model.dropout else 0.0
    return strict.from_dict(Config, nested)


def point_of(number: int, change: Change, base: ConfigDict, shown: Iterable[str]) -> Point:
    """Return the point that is `base` with a change, named by the fields in `shown`.

    Raises:
      ConfigError: a field is wrong.
    """
    nested = paths.with_fields(Config, base.to_dict(), change.values)
    declared = Config.schema_of(nested)
    if problems := [_unknown(declared, path) for path in change.values if path not in schema.field_paths(declared)]:
        raise ConfigError("; ".join(problems))
    cfg = strict.from_dict(Config, nested)
    name = _describe(change, [path for path in shown if path in change.values]) or "base"
    try:
        fingerprint = identity.fingerprint(cfg)
    except DataError:  # of this point alone, which will say so when it runs
        fingerprint = strict.fingerprint(cfg)
    return Point(number, name, dict(change.values), cfg, fingerprint, change.label)


def _unknown(declared: type[Config], path: str) -> str:
    if path in schema.sections(declared):
        return f"{path} is a section: set its fields one by one"
    return schema.unknown_field(declared, path)


def _distinguishing(changes: Sequence[Change]) -> list[str]:
    """Return the paths that do not have one and the same value in all points."""
    paths = dict.fromkeys(path for change in changes for path in change.values)
    missing, first = object(), changes[0].values
    return [path for path in paths if any(c.values.get(path, missing) != first.get(path, missing) for c in changes)]


def _describe(change: Change, paths: Iterable[str]) -> str:
    """Return e.g. `no warmup,seed=1`, without the fields that the label stands for."""
    shown = [path for path in paths if path not in change.labelled]
    return ",".join([*([change.label] if change.label else []), *(_shown(path, change.values[path]) for path in shown)])


def _shown(path: str, value: Any) -> str:
    return f"{path.rpartition('.')[2]}={value:g}" if isinstance(value, float) else f"{path.rpartition('.')[2]}={value}"


def _check_collisions(points: Sequence[Point]) -> None:
    problems, first = [], {}
    for point in points:
        other = first.setdefault(point.fingerprint, point)
        if other is point:
            continue
        plumbing = [found.path for found in strict.diff(other.cfg, point.cfg)]
        why = f"they differ in {', '.join(plumbing)} only, which is plumbing" if plumbing else "no field differs"
        pair = f"points {other.number} ({other.name}) and {point.number} ({point.name})"
        problems.append(f"{pair} are the same run: {why}")
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"... and {len(problems) - MAX_PROBLEMS} points more"]
    if problems:
        raise SweepError("\n".join(problems))
