"""One HTML page without a network: data, styles, scripts and Plotly's own script in a single file."""

import base64
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.science.laws import report as fits_report
from bigjax.science.report.page.tables import Table, label
from bigjax.science.report.runs import Run
from bigjax.science.report.summary import Report

MAX_ROWS = 1000
"""Rows of a curve beyond which neighbours are averaged."""

MAX_VALUES = 200_000
"""Values of all curves together, which keeps the page at a few MB whatever the number of runs."""

SCRIPTS = ("table.js", "charts.js", "curves.js", "settings.js", "maps.js", "main.js")


def render(
    report: Report, tables: list[Table], pictures: dict[str, Path], *, command: str, made: str, refresh: int
) -> str:
    """Return the page.

    Args:
        pictures: name -> SVG of the fits.
        command: what made the report; made: when.
        refresh: seconds after which the page loads itself again; 0 for never.
    """
    from plotly.offline import get_plotlyjs  # of the extra `report`

    parts = resources.files("bigjax.science.report.page")
    data = contents(report, tables) | {"command": command, "made": made, "refresh": refresh}
    data["pictures"] = [{"name": name, "source": _image(path)} for name, path in pictures.items()]
    # A script ends at "</script", wherever it stands.
    embedded = json.dumps(_clean(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = (parts / "page.html").read_text(encoding="utf-8")
    scripts = "\n".join((parts / name).read_text(encoding="utf-8") for name in SCRIPTS)
    for name, text in (
        ("refresh", f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""),
        ("style", (parts / "style.css").read_text(encoding="utf-8")),
        ("data", embedded),
        ("plotly", get_plotlyjs()),
        ("scripts", scripts),
    ):
        page = page.replace(f"<!--{name}-->", text, 1)
    return page


def contents(report: Report, tables: list[Table]) -> dict[str, Any]:
    """Return the data of the page."""
    floor = report.floor
    limit = int(min(MAX_ROWS, max(50, MAX_VALUES // (4 * len(report.runs)))))
    per_token = _flops_per_token(report.runs)
    settings = {i: at for at, setting in enumerate(report.settings) for i in setting.runs}
    fields = {field.path: field for field in report.fields if not field.plumbing}
    return {
        "pattern": report.pattern,
        "question": report.question,
        "asked": report.asked,
        "measure": report.measure,
        "unit": report.unit,
        "incomparable": report.incomparable,
        "runs": [
            {
                "name": run.name,
                "folder": run.folder,
                "state": run.state,
                "command": run.command,
                "fingerprint": run.fingerprint,
                "leftOut": report.left_out.get(i),
                "setting": settings.get(i),
                "loss": run.number(report.measure) if i not in report.left_out else None,
                "values": {path: field.values[i] for path, field in fields.items()},
                "tokensPerStep": run.tokens_per_step,
                "flopsPerStep": (run.tokens_per_step or 0) * per_token.get(_model(run), 0.0) or None,
                "curves": {name: _curve(curve, limit) for name, curve in run.curves.items()},
            }
            for i, run in enumerate(report.runs)
        ],
        "settings": [
            {
                "label": label(setting),
                "runs": setting.runs,
                "losses": setting.losses.tolist(),
                "values": setting.values,
                "mean": setting.row.mean.value,
                "low": setting.row.mean.low,
                "high": setting.row.mean.high,
                "verdict": setting.row.verdict,
            }
            for setting in report.settings
        ],
        "axes": [field.path for field in report.axes],
        "floor": floor
        and {"sd": floor.sd, "dof": floor.dof, "settings": floor.settings, "detectable": floor.detectable},
        "tables": {table.name: table.to_json() for table in tables},
        "fits": fits_report.to_markdown(report.fits) if report.fits else "",
        "fitsSkipped": report.fits_skipped,
    }


def _flops_per_token(runs: list[Run]) -> dict[str, float]:
    """Return FLOPs per token by model, as finished runs recorded them, for the runs that are not finished."""
    found = {}
    for run in runs:
        flops, tokens = run.number("flops"), run.number("tokens")
        if flops and tokens:
            found.setdefault(_model(run), flops / tokens)
    return found


def _model(run: Run) -> str:
    """Return the fields on which FLOPs per token depend."""
    lengths = ("data.seq_len", "data.target_len")
    return json.dumps({k: v for k, v in run.config.items() if k.startswith("model.") or k in lengths}, sort_keys=True)


def _curve(curve: np.ndarray, limit: int) -> dict[str, list[Any]]:
    """Return the columns of a curve, neighbours averaged so that at most `limit` rows are left; NaN stays NaN."""
    if len(curve) > limit:
        starts = np.unique(np.linspace(0, len(curve), limit, endpoint=False).astype(int))
        curve = np.add.reduceat(curve, starts) / np.diff([*starts, len(curve)])[:, None]
    step, seconds, value = curve.T
    return {"step": _digits(step, 7), "time": _digits(seconds, 6), "value": _digits(value, 6)}


def _digits(values: np.ndarray, digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


def _image(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _clean(value: Any) -> Any:
    """Return `value` with null for what is not finite."""
    if isinstance(value, dict):
        return {key: _clean(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
