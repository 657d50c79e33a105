"""Points for fits, read from a CSV file or from the folders of runs."""

import csv
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.errors import brief
from bigjax.paths import AnyPath, as_path, is_remote, matching
from bigjax.run.folder import RunFolder
from bigjax.run.plots import smoothed
from bigjax.run.rows import read_rows
from bigjax.science.laws.points import Conventions, Curve, Excluded, FlopCount, ParamCount, Points, make_points
from bigjax.science.laws.robust import FitError

REQUIRED = ("params", "tokens", "loss")

EXTRA = ("unique_tokens", "accuracy")
"""Columns that only some laws need: the data-constrained, and the downstream one."""

KNOWN = (*REQUIRED, "flops", "weight", "seed", "diverged", *EXTRA)
"""Columns of a CSV, in capitals or not. A seed says nothing more: runs of one size and length are seeds."""

MOST_NAMES, MOST_LETTERS = 5, 30
"""How much is said of columns that are not read."""

SAME_IN_ALL_RUNS = (
    "data.tokenizer",
    "model.vocab_size",
    "train.objective",
    "data.sources",
    "data.eval_sources",
    "data.holdout",
)
"""Fields of the config on which the meaning of a loss depends."""

TRUE, FALSE = ("1", "true", "yes", "1.0"), ("0", "false", "no", "0.0", "")

MIN_EVALUATIONS = 3
"""Evaluations that every run must have for the loss curves to be those of held-out text."""


def read_csv(
    path: str | AnyPath,
    *,
    params: ParamCount,
    flops: FlopCount | None,
    recompute: bool,
    columns: Mapping[str, str] | None = None,
    also: Collection[str] = (),
) -> Points:
    """Return the rows of a CSV file with the columns `params,tokens,loss`, and others of `KNOWN` where it has them.

    Semicolons or tabs may stand for the commas, if they do in the header. `flops` None takes the column `flops` where
    there is one that is not empty, and 6ND otherwise; the `notes` say what was counted and which columns were not read.

    Args:
        columns: known name -> the name that the file has for it.
        also: names of further columns to read where the file has them, such as those of a law.

    Raises:
        FitError: the file cannot be read, a column is missing or there twice, a row has more cells than the header, or
            a cell is not a number or not above 0; some rows have FLOPs and others none, with `flops` None.
    """
    path = as_path(path)
    rows, names = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
            header = _renamed([name.strip() for name in next(reader, ())], columns or {}, path)
            for cells in reader:
                if any(cells):
                    names.append(f"{path.name}:{reader.line_num}")
                    rows.append(_row(header, cells, names[-1]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FitError(f"{path} cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from error
    diverged = [_flag(row.get("diverged", ""), where) for row, where in zip(rows, names, strict=True)]
    asked = flops
    if flops is None:
        flops = _counted([row for row, left_out in zip(rows, diverged, strict=True) if not left_out], path)
    needed = (*REQUIRED, "flops") if flops == "recorded" else REQUIRED
    if missing := [name for name in needed if name not in header]:
        lacking = f"column{'s' * (len(missing) > 1)} {', '.join(missing)}"
        has = f"it has {_some(header) or 'none'}; --columns={missing[0]}=NAME says how the file calls it"
        raise FitError(f"{path} lacks the {lacking}: {has}")
    if twice := [name for name in (*needed, "weight", "diverged", *EXTRA, *also) if header.count(name) > 1]:
        raise FitError(f"{path} has the column {twice[0]} {header.count(twice[0])} times: which one counts?")
    if not rows:
        raise FitError(f"{path} has no rows")

    def column(name: str) -> list[float]:
        return [_number(row, name, where) for row, where in zip(rows, names, strict=True)]

    size, tokens, loss = (column(name) for name in REQUIRED)
    recorded = column("flops") if flops == "recorded" else None
    notes = []
    if recorded is not None and asked is None:
        notes.append(
            f"FLOPs are those of the column flops, {_over_6nd(recorded, size, tokens)}; --flops=6ND computes them from "
            "params and tokens"
        )
    elif "flops" in header and asked == "6ND":
        notes.append("the column flops is not used: --flops=6ND computes FLOPs from params and tokens")
    extra = {name: column(name) for name in dict.fromkeys((*EXTRA, *also)) if name in header}
    repeats = [unique < seen for unique, seen in zip(extra.get("unique_tokens", ()), tokens, strict=False)]
    if any(repeats):
        notes.append(
            f"{sum(repeats)} of {len(repeats)} runs repeat data: only the data-constrained law, and one that names U, "
            "know of it"
        )
    if unread := [name for name in header if name and name not in (*KNOWN, *also)]:
        notes.append(f"columns that are not read: {_some(unread)}")
    return make_points(
        size,
        tokens,
        loss,
        flops=recorded,
        weight=column("weight") if "weight" in header else None,
        diverged=diverged,
        names=names,
        conventions=Conventions(params, flops, recompute, loss="as given in the file", source=path.name),
        notes=notes,
        extra=extra,
    )


def _renamed(header: list[str], columns: Mapping[str, str], path: AnyPath) -> list[str]:
    """Return the header as `KNOWN` spells it, after the names that `columns` gives.

    Raises:
        FitError: a name is not known, or the file has no such column.
    """
    for name, given in columns.items():
        if name not in KNOWN:
            raise FitError(f"--columns names {brief(name, 60)}, which is none of {', '.join(KNOWN)}")
        if given not in header:
            raise FitError(f"--columns={name}={brief(given, 60)}: {path} has no such column, but {_some(header)}")
    given = {column: name for name, column in columns.items()}
    # A column that another one stands for is not read.
    replaced = {name: f"{name} of the file" for name in columns}
    return [given.get(name) or replaced.get(_known(name), _known(name)) for name in header]


def _known(name: str) -> str:
    """Return the name of a column as `KNOWN` spells it, if it is one of these."""
    return name.lower() if name.lower() in KNOWN else name


def _counted(rows: list[dict[str, str]], path: AnyPath) -> FlopCount:
    """Return `recorded` if all rows that have a loss have FLOPs, and `6ND` if none has."""
    filled = [_is_filled(row, "flops") for row in rows if _is_filled(row, "loss")]
    if any(filled) and not all(filled):
        raise FitError(
            f"{path.name} has flops in {sum(filled)} of {len(filled)} rows: fill in the others, or say --flops=6ND to "
            "compute all from params and tokens"
        )
    return "recorded" if any(filled) else "6ND"


def _is_filled(row: dict[str, str], name: str) -> bool:
    return (row.get(name) or "").strip().lower() not in ("", "nan")


def _over_6nd(flops: Sequence[float], params: Sequence[float], tokens: Sequence[float]) -> str:
    """Return what recorded FLOPs are in multiples of 6ND."""
    with np.errstate(all="ignore"):
        ratio = np.asarray(flops, float) / (6 * np.asarray(params, float) * np.asarray(tokens, float))
    known = ratio[np.isfinite(ratio)]
    return f"{known.min():.3g} to {known.max():.3g} times 6ND" if len(known) else "an unknown multiple of 6ND"


def _some(names: list[str]) -> str:
    """Return the first of the names, each cut to a length."""
    shown = [name if len(name) <= MOST_LETTERS else name[:MOST_LETTERS] + "..." for name in names[:MOST_NAMES]]
    return ", ".join(shown) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _row(header: list[str], cells: list[str], where: str) -> dict[str, str]:
    """Return the cells by column; a row that ends early lacks the last ones, but none may have more."""
    if any(cells[len(header) :]):  # such as 1,000 without quotes, which moves all that follows into the next columns
        raise FitError(f"{where} has {len(cells)} cells under {len(header)} columns")
    return dict(zip(header, cells, strict=False))


def _number(row: dict[str, str], name: str, where: str) -> float:
    text = (row.get(name) or "nan").strip()
    try:
        return float(text or "nan")
    except ValueError:
        raise FitError(f"{where} has {name}={text}, which is not a number") from None


def _flag(text: str, where: str) -> bool:
    word = text.strip().lower()
    if word not in (*TRUE, *FALSE):
        raise FitError(f"{where} has diverged={text}, which is not one of {', '.join(filter(None, TRUE + FALSE))}")
    return word in TRUE


def read_runs(pattern: str, *, params: ParamCount, flops: FlopCount | None, recompute: bool) -> Points:
    """Return the finished runs whose folders match the glob `pattern`, with their loss curves.

    `flops` None is 6ND, and the `notes` say how far from it the FLOPs are that the runs recorded.
    A run is excluded, with the reason, if it is not finished (a sweep notes why), has no held-out loss, diverged (its
    loss is not below that of uniform guessing) or repeats another folder's fingerprint.

    Raises:
        FitError: no folder of a run matches, or the runs' losses cannot be compared.
    """
    root, relative = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (Path(), pattern)
    paths = matching(pattern) if is_remote(pattern) else sorted(root.glob(relative))
    folders = [folder for path in paths if (folder := RunFolder(path)).config.is_file()]
    if not folders:
        raise FitError(f"--runs={pattern} matches no folder of a run: none there has a config.json")
    excluded, kept, seen = [], [], {}
    for folder in folders:
        name = str(folder.path)
        if not folder.complete:
            excluded.append(Excluded(name, _why_unfinished(folder)))
            continue
        config, result = _read(folder.config)["config"], _read(folder.result)
        fingerprint = result.get("fingerprint")
        if result.get("eval_loss") is None:
            excluded.append(Excluded(name, "no held-out loss: eval_loss is missing from result.json"))
        elif fingerprint is not None and fingerprint in seen:
            excluded.append(Excluded(name, f"the same run as {seen[fingerprint]}: both have fingerprint {fingerprint}"))
        else:
            seen[fingerprint] = name
            kept.append((folder, config, result))
    if not kept:
        first = excluded[0]
        raise FitError(
            f"--runs={pattern} has no run to fit; the first of {len(excluded)} is {first.point}: {first.reason}"
        )
    _check_comparable(kept)
    _, config, _ = kept[0]
    column = {key: [_result(folder, result, key) for folder, _, result in kept] for key in _keys(params)}
    loss = np.array(column["eval_loss"])
    vocab_size = _field(config, "model.vocab_size")
    curves, kind = _curves([(folder, result) for folder, _, result in kept])
    notes = []
    if flops is None:
        times = _over_6nd(column["flops"], column[f"params_{params}"], column["tokens"])
        notes.append(f"FLOPs are 6ND; the runs recorded {times}, which --flops=recorded takes")
    return make_points(
        column[f"params_{params}"],
        column["tokens"],
        loss,
        flops=column["flops"],
        diverged=loss >= math.log(vocab_size) if vocab_size else None,
        names=[str(folder.path) for folder, _, _ in kept],
        conventions=Conventions(
            params,
            flops or "6ND",
            recompute,
            loss=f"held-out loss in nats per token; curves: {kind}",
            source=pattern,
            tokenizer=_field(config, "data.tokenizer"),
            vocab_size=vocab_size,
            objective=_field(config, "train.objective"),
        ),
        excluded=excluded,
        curves=curves,
        notes=notes,
    )


def _why_unfinished(folder: RunFolder) -> str:
    if not folder.outcome.is_file():
        return "not finished: it has no result.json"
    outcome = _read(folder.outcome)
    return f"{outcome.get('state')}: {outcome.get('reason')}"


def _keys(params: ParamCount) -> tuple[str, ...]:
    return (f"params_{params}", "tokens", "flops", "eval_loss")


def _read(path: AnyPath) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FitError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise FitError(f"{path} cannot be read: it holds no object")
    return found


def _result(folder: RunFolder, result: dict[str, Any], key: str) -> float:
    try:
        return float(result[key])
    except (KeyError, TypeError, ValueError):
        raise FitError(f"{folder.result} has {key}={result.get(key)!r}, which is not a number") from None


def _field(config: dict[str, Any], path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _check_comparable(kept: list[tuple[RunFolder, dict[str, Any], dict[str, Any]]]) -> None:
    first, config, _ = kept[0]
    for folder, other, _ in kept[1:]:
        for path in SAME_IN_ALL_RUNS:
            here, there = _field(config, path), _field(other, path)
            if here != there:
                raise FitError(
                    f"the losses of these runs cannot be compared: {path} is {here!r} in {first.path} and "
                    f"{there!r} in {folder.path}"
                )


def _curves(runs: list[tuple[RunFolder, dict[str, Any]]]) -> tuple[list[Curve], str]:
    """Return the loss curve of each run and what it is of: held-out text if every run has enough evaluations."""
    rows = [list(read_rows(folder.metrics)) if folder.metrics.is_file() else [] for folder, _ in runs]
    evaluated = min(sum("eval/loss" in row for row in of_run) for of_run in rows) >= MIN_EVALUATIONS
    name = "eval/loss" if evaluated else "train/loss"
    curves = []
    for (_, result), of_run in zip(runs, rows, strict=True):
        found = np.array([(row["step"], row[name]) for row in of_run if name in row], float).reshape(-1, 2)
        step, loss = found.T
        if not evaluated:
            loss = smoothed(loss, reach=len(loss) // 50)
        good = np.isfinite(loss) & (loss > 0) & (step > 0)
        curves.append(Curve(step[good] * float(result["tokens"]) / float(result["steps"]), loss[good]))
    return curves, name if evaluated else "train/loss, smoothed over 2 % of the run to either side"
