"""What a set of runs says about its question: what varies, which settings differ, and the laws that fit.

Only finished runs count. What is left out is left out by rule, with its reason, and stays in the tables.
"""

import ast
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.config import shipped
from bigjax.errors import UserError
from bigjax.paths import as_path
from bigjax.science.laws.report import METHODS, Study, study
from bigjax.science.laws.robust import FitError
from bigjax.science.laws.sources import read_runs
from bigjax.science.report import ablation
from bigjax.science.report import runs as report_runs
from bigjax.science.report.runs import Run

SEED = "train.seed"
"""The field in which the runs of one setting may differ."""

MIN_SIZES = 3
"""Model sizes below which the exponent of a law says nothing but the ratio of two losses."""

MEASURED_ON = ("train.objective", "data.tokenizer", "model.vocab_size", "model.head", "train.eval_batches")
"""Fields that say what a held-out loss is, next to the text it is measured on."""


@dataclass(frozen=True)
class Field:
    """A field that two runs set differently; `values` of each run, `like` the earlier field it moves with, if any."""

    path: str
    values: tuple[Any, ...]
    plumbing: bool
    like: str | None = None


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but the seed.

    Attributes:
        values: of every field that varies, but for seed and plumbing.
        runs: indices of the counted runs; losses: theirs.
        changes: (path, value in the baseline, value here).
        row: its statistics.
    """

    values: dict[str, Any]
    runs: tuple[int, ...]
    losses: np.ndarray
    changes: tuple[tuple[str, Any, Any], ...]
    row: ablation.Row


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        asked: where the question is from.
        measure: the key of `result.json` that is compared.
        left_out: index of a run -> why no statistics use it.
        fields: what varies, in the order of the schema.
        settings: with the baseline first; empty if the losses cannot be compared.
        incomparable: why they cannot.
        fits: laws fitted to the runs; `fits_skipped`: why there are none.
    """

    pattern: str
    question: str
    asked: str
    measure: str
    runs: list[Run]
    left_out: dict[int, str]
    fields: list[Field]
    settings: list[Setting]
    floor: ablation.NoiseFloor | None
    incomparable: str
    fits: Study | None
    fits_skipped: str

    @property
    def axes(self) -> list[Field]:
        """The fields that vary on their own among the settings: neither plumbing, nor moving with an earlier one."""
        settings = [{path: json.dumps(value) for path, value in s.values.items()} for s in self.settings]
        return [
            field for field in filter(_is_free, self.fields) if len({values[field.path] for values in settings}) > 1
        ]

    @property
    def unit(self) -> str:
        """The unit of the loss."""
        return "nats per token" if all(run.config.get("model.head", "lm") == "lm" for run in self.runs) else "nats"


def build(
    pattern: str,
    *,
    question: str | None = None,
    baseline: str | None = None,
    fits: tuple[Study | None, str] | None = None,
) -> Report:
    """Read the runs that match `pattern` and compare them.

    Args:
        question: what was asked; by default the docstring of the config file that all runs were started with.
        baseline: name or folder of a run of the baseline; by default the setting that differs least from the others.
        fits: those of an earlier report of the same finished runs.

    Raises:
        UserError: no run matches, or none is called `baseline`.
    """
    runs = report_runs.read(pattern)
    measure = "eval_loss" if any(run.number("eval_loss") is not None for run in runs) else "train_loss"
    left_out = _left_out(runs, measure)
    fields = _varying(runs)
    counted = [i for i in range(len(runs)) if i not in left_out]
    incomparable = _incomparable(runs, counted)
    groups = _groups(runs, fields, [] if incomparable else counted)
    first = _baseline(runs, fields, groups, baseline)
    settings, floor = _settings(runs, fields, groups, first, measure)
    if fits is None:
        fits = (None, incomparable) if incomparable else fit(pattern, runs, settings)
    asked = ("", "--question") if question is not None else _docstring(runs)
    return Report(
        pattern=pattern,
        question=question if question is not None else asked[0],
        asked=asked[1],
        measure=measure,
        runs=runs,
        left_out=left_out,
        fields=fields,
        settings=settings,
        floor=floor,
        incomparable=incomparable,
        fits=fits[0],
        fits_skipped=fits[1],
    )


def fit(pattern: str, runs: list[Run], settings: list[Setting]) -> tuple[Study | None, str]:
    """Return the laws that fit, or None and why there are none.

    Runs of one size and length are taken as seeds by a fit, so they must not differ in anything else.
    """
    sizes = len({runs[setting.runs[0]].number("params_total") for setting in settings})
    if sizes < MIN_SIZES:
        return None, f"a law needs runs of at least {MIN_SIZES} sizes, and these have {sizes}"
    seen: dict[tuple[Any, ...], Setting] = {}
    for setting in settings:
        result = runs[setting.runs[0]].result
        key = (result.get("params_total"), result.get("tokens"))
        other = seen.setdefault(key, setting)
        if other is not setting:
            paths = [path for path, value in setting.values.items() if value != other.values[path]]
            return None, (
                f"{runs[other.runs[0]].name} and {runs[setting.runs[0]].name} have one size and length but differ in "
                f"{', '.join(paths)}: a law is fitted to one setting of each"
            )
    try:
        points = read_runs(pattern, params="total", flops="6ND", recompute=False)
        return study(points, METHODS), ""
    except FitError as error:
        return None, str(error)


def shown(value: Any) -> str:
    """Return the value of a field as text."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return ", ".join(map(shown, value)) or "()" if isinstance(value, (list, tuple)) else str(value)


def ordered(values: Sequence[Any]) -> list[Any]:
    """Return the different values of a field in ascending order."""
    different = list({json.dumps(value): value for value in values}.values())
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in different)
    return sorted(different, key=None if numbers else shown)


def _left_out(runs: list[Run], measure: str) -> dict[int, str]:
    """Return why runs are in no statistics: not finished, no finite loss, or another folder's run once more."""
    found: dict[int, str] = {}
    seen: dict[str, str] = {}
    for i, run in enumerate(runs):
        loss = run.number(measure)
        if run.state != "finished":
            found[i] = f"{run.state}: {run.reason}"
        elif loss is None or not math.isfinite(loss):
            found[i] = f"no {measure} in result.json"
        elif run.fingerprint is not None and (other := seen.setdefault(run.fingerprint, run.name)) != run.name:
            found[i] = f"the same run as {other}: both have fingerprint {run.fingerprint}"
    return found


def _varying(runs: list[Run]) -> list[Field]:
    found: list[Field] = []
    known = [i for i, run in enumerate(runs) if run.config]  # of an unreadable one no field is
    for path in dict.fromkeys(path for run in runs for path in run.config):
        values = tuple(run.config.get(path) for run in runs)
        if len({json.dumps(values[i]) for i in known}) < 2:
            continue
        plumbing, like = path in report_runs.PLUMBING, None
        if not plumbing and path != SEED:
            like = next(
                (
                    field.path
                    for field in found
                    if _is_free(field) and _move_together(*([v[i] for i in known] for v in (field.values, values)))
                ),
                None,
            )
        found.append(Field(path, values, plumbing, like))
    return found


def _is_free(field: Field) -> bool:
    return not (field.plumbing or field.like or field.path == SEED)


def _move_together(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether each value of one belongs to one of the other, numbers in the same or the opposite order.

    Without the order, any two fields that were drawn at random would.
    """
    pairs = list({json.dumps(pair): pair for pair in zip(a, b, strict=True)}.values())
    if any(len({json.dumps(pair[i]) for pair in pairs}) < len(pairs) for i in (0, 1)):
        return False
    if not all(isinstance(x, (int, float)) for pair in pairs for x in pair):
        return True
    rising = [y for _, y in sorted(pairs)]
    return rising in (sorted(rising), sorted(rising, reverse=True))


def _maths(fields: list[Field]) -> list[Field]:
    return [field for field in fields if not field.plumbing and field.path != SEED]


def _incomparable(runs: list[Run], counted: list[int]) -> str:
    """Return the sentence that says why the losses of two counted runs are not of the same thing, if they are not."""
    for i in counted[1:]:
        config, other = runs[i].config, runs[counted[0]].config
        held_out = ("data.eval_sources",) if config.get("data.eval_sources") else ("data.sources", "data.holdout")
        for path in (*MEASURED_ON, "data.eval_sources", *held_out):
            if config.get(path) != other.get(path):
                return (
                    f"the losses of these runs cannot be compared: {path} is {shown(other.get(path))} in "
                    f"{runs[counted[0]].name} and {shown(config.get(path))} in {runs[i].name}"
                )
    return ""


def _groups(runs: list[Run], fields: list[Field], counted: list[int]) -> list[list[int]]:
    """Return the counted runs by setting."""
    groups: dict[str, list[int]] = {}
    for i in counted:
        groups.setdefault(json.dumps([field.values[i] for field in _maths(fields)]), []).append(i)
    return list(groups.values())


def _baseline(runs: list[Run], fields: list[Field], groups: list[list[int]], wanted: str | None) -> int:
    """Return the index of the setting to compare with.

    By default it is the one that differs from the others in the fewest fields in all, then the one with most seeds.
    """
    if wanted is not None:
        chosen = [i for i, run in enumerate(runs) if wanted.rstrip("/") in (run.name, run.folder)]
        if not chosen:
            raise UserError(f"--baseline={wanted} is none of the runs: {', '.join(run.name for run in runs[:8])}, ...")
        found = [at for at, group in enumerate(groups) if chosen[0] in group]
        if not found and groups:
            raise UserError(f"--baseline={wanted} has no loss to compare with: it is not finished, or repeats another")
        return found[0] if found else 0
    texts = [[json.dumps(field.values[group[0]]) for field in _maths(fields)] for group in groups]
    counts = [Counter(column) for column in zip(*texts, strict=True)]
    distance = [sum(len(groups) - count[t] for count, t in zip(counts, text, strict=True)) for text in texts]
    return min(range(len(groups)), key=lambda at: (distance[at], -len(groups[at]), at), default=0)


def _settings(
    runs: list[Run], fields: list[Field], groups: list[list[int]], baseline: int, measure: str
) -> tuple[list[Setting], ablation.NoiseFloor | None]:
    losses = [np.array([runs[i].number(measure) for i in group], float) for group in groups]
    rows = ablation.ablate(losses, baseline) if groups else []
    found = []
    for group, loss, row in zip(groups, losses, rows, strict=True):
        values = {field.path: field.values[group[0]] for field in _maths(fields)}
        base = {field.path: field.values[groups[baseline][0]] for field in _maths(fields)}
        changes = tuple((path, base[path], value) for path, value in values.items() if value != base[path])
        found.append(Setting(values, tuple(group), loss, changes, row))
    found = [*found[baseline : baseline + 1], *sorted(found[:baseline] + found[baseline + 1 :], key=_mean)]
    return found, ablation.noise_floor(losses)


def _mean(setting: Setting) -> float:
    return setting.row.mean.value


def _docstring(runs: list[Run]) -> tuple[str, str]:
    """Return the docstring of the one config file that all runs, or their sweep, were started with, and where it is."""
    files = {_config_file(run) for run in runs}
    (file,) = files if len(files) == 1 else (None,)
    path = Path(shipped.located(file or ""))
    if file is None or path.suffix != ".py" or not path.is_file():
        return "", ""
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "", file
    except (OSError, SyntaxError, ValueError):
        return "", ""


def _config_file(run: Run) -> str | None:
    """Return the config file of the sweep that a run is a point of, or of the run's own command."""
    try:
        return json.loads((as_path(run.folder).parent / "sweep.json").read_text())["config"].partition(":")[0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return run.config_file
