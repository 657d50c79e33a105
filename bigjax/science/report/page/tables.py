"""The tables of a report, each as JSON for the page, CSV and LaTeX."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bigjax.science.report.ablation import Interval
from bigjax.science.report.summary import SEED, Report, Setting, ordered, shown

Kind = Literal[
    "text", "code", "data", "interval", "loss", "count", "flops", "seconds", "number", "p", "verdict", "state"
]
"""What a column holds. `data` is for the CSV only, `interval` for people only; `code` is not in LaTeX."""

NUMERIC = ("interval", "loss", "count", "flops", "seconds", "number", "p")


@dataclass(frozen=True)
class Table:
    """Rows of values; a column is `(name, kind)`. `runs` holds, for each row, the indices of the runs behind it."""

    name: str
    caption: str
    columns: tuple[tuple[str, Kind], ...]
    rows: list[list[Any]]
    runs: list[list[int]]

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows: each cell as `[sort key, text]`."""
        cells = [
            [[_plain(v), shown_as(v, kind)] for v, (_, kind) in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]
        return {
            "name": self.name,
            "caption": self.caption,
            "columns": [{"name": name, "kind": kind, "numeric": kind in NUMERIC} for name, kind in self.columns],
            "rows": cells,
            "runs": self.runs,
        }

    def to_csv(self) -> str:
        """Return the values in full precision; an empty cell is one that is not known."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        kept = [i for i, (_, kind) in enumerate(self.columns) if kind != "interval"]
        for row in ([name for name, _ in self.columns], *self.rows):
            writer.writerow(["" if row[i] is None else row[i] for i in kept])
        return text.getvalue()

    def to_latex(self) -> str:
        """Return a table for the package booktabs, as it is shown, without commands and folders."""
        kept = [i for i, (_, kind) in enumerate(self.columns) if kind not in ("code", "data")]
        layout = "".join("r" if self.columns[i][1] in NUMERIC else "l" for i in kept)
        lines = [
            " & ".join(latex(shown_as(row[i], self.columns[i][1])) for i in kept) + r" \\"
            for row in ([name for name, _ in self.columns], *self.rows)
        ]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{latex(self.caption)}}}",
                rf"\begin{{tabular}}{{{layout}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def tables(report: Report) -> list[Table]:
    """Return every table there is something to put in."""
    found = [_runs(report), _differences(report)]
    if report.settings:
        found.append(_ablation(report))
    return [table for table in found if table.rows]


def _runs(report: Report) -> Table:
    varying = [field for field in report.fields if not field.plumbing]
    numbers: tuple[tuple[str, str, Kind], ...] = (
        ("train loss", "train_loss", "loss"),
        ("bits per byte", "eval_bits_per_byte", "loss"),
        ("accuracy", "eval_accuracy", "loss"),
        ("held out and trained on", "held_out_trained_on", "count"),
        ("parameters", "params_total", "count"),
        ("tokens", "tokens", "count"),
        ("FLOPs", "flops", "flops"),
        ("seconds", "wall_s", "seconds"),
    )
    numbers = tuple(of for of in numbers if any(run.number(of[1]) is not None for run in report.runs))
    columns: tuple[tuple[str, Kind], ...] = (
        ("run", "text"),
        ("state", "state"),
        ("loss", "loss"),
        *((field.path, _kind(field.values)) for field in varying),
        *((name, kind) for name, _, kind in numbers),
        ("left out of statistics", "data"),
        ("folder", "code"),
        ("command", "code"),
    )
    rows = [
        [
            run.name,
            run.state,
            run.number(report.measure),
            *(_cell(field.values[i]) for field in varying),
            *(run.number(key) for _, key, _ in numbers),
            report.left_out.get(i),
            run.folder,
            run.command,
        ]
        for i, run in enumerate(report.runs)
    ]
    return Table("runs", f"Runs of {report.pattern}", columns, rows, [[i] for i in range(len(rows))])


def _differences(report: Report) -> Table:
    rows, runs = [], []
    for field in report.fields:
        known = [value for run, value in zip(report.runs, field.values, strict=True) if run.config]
        values = list(map(shown, ordered(known)))
        note = "plumbing: changes no number" if field.plumbing else ""
        note = "seed: runs that differ only here are one setting" if field.path == SEED else note
        note = f"moves with {field.like}" if field.like else note
        listed = ", ".join(values[:12]) + (f", ... ({len(values)} values)" if len(values) > 12 else "")
        rows.append([field.path, listed, len(values), note])
        runs.append(list(range(len(report.runs))))
    columns: tuple[tuple[str, Kind], ...] = (
        ("field", "text"),
        ("values", "text"),
        ("count", "number"),
        ("note", "text"),
    )
    return Table("config_diff", f"Fields in which {len(report.runs)} runs differ", columns, rows, runs)


def _ablation(report: Report) -> Table:
    columns: tuple[tuple[str, Kind], ...] = (
        ("setting", "text"),
        ("verdict", "verdict"),
        ("seeds", "number"),
        ("mean loss", "loss"),
        ("95 % interval", "interval"),
        ("low", "data"),
        ("high", "data"),
        ("difference", "loss"),
        ("95 % interval of it", "interval"),
        ("difference low", "data"),
        ("difference high", "data"),
        ("p", "p"),
        ("p (Holm)", "p"),
        ("test", "text"),
        ("folders", "code"),
    )
    rows = []
    for setting in report.settings:
        row, difference = setting.row, setting.row.difference
        rows.append(
            [
                label(setting),
                row.verdict,
                row.runs,
                row.mean.value,
                *_ends(row.mean),
                difference and difference.value,
                *_ends(difference),
                row.p,
                row.p_adjusted,
                {"welch": "Welch", "pooled": "pooled", "none": None}[row.test],
                " ".join(report.runs[i].folder for i in setting.runs),
            ]
        )
    caption = f"{report.measure} over seeds with 95 % intervals, against the baseline"
    return Table("ablation", caption, columns, rows, [list(setting.runs) for setting in report.settings])


def _ends(interval: Interval | None) -> list[Any]:
    """Return an interval as text and as its two ends."""
    if interval is None or interval.low is None:
        return [None, None, None]
    return [f"[{interval.low:.4f}, {interval.high:.4f}]", interval.low, interval.high]


def label(setting: Setting) -> str:
    """Return what a setting changes in the baseline."""
    if not setting.changes:
        return "baseline"
    parts = [f"{path} {_short(old)} → {_short(new)}" for path, old, new in setting.changes]
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def shown_as(value: Any, kind: Kind) -> str:
    """Return a value as people read it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if kind == "loss":
        return f"{value:.4f}"
    if kind == "count":
        return si(value)
    if kind == "flops":
        return f"{value:.3g}"
    if kind == "seconds":
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if kind == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    return shown(value)


def si(value: float) -> str:
    """Return a count with its prefix: 3.67M."""
    for size, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.6g}"


def latex(text: str) -> str:
    """Return text with what LaTeX reads as commands escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\to$"}
    special |= {"<": "$<$", ">": "$>$", "±": r"$\pm$"}
    return re.sub(r"[\\~^→<>±&%$#_{}]", lambda match: special.get(match[0], rf"\{match[0]}"), text)


def _kind(values: Sequence[Any]) -> Kind:
    return "number" if all(_is_number(value) or value is None for value in values) else "text"


def _cell(value: Any) -> Any:
    return value if _is_number(value) else shown(value) if value is not None else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Return what JavaScript sorts by."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
