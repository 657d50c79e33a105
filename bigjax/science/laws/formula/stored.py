"""Fitted laws in a file, for predictions from Python and by command."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.errors import UserError, brief, listed
from bigjax.run.json_files import dumps, reading, write_text
from bigjax.science.laws.data_constrained import DataConstrainedFit
from bigjax.science.laws.downstream import DownstreamFit
from bigjax.science.laws.formula.expression import parse
from bigjax.science.laws.formula.fit import FormulaFit
from bigjax.science.laws.formula.law import CHINCHILLA, REPEATED, Law
from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.parametric import ParametricFit
from bigjax.science.laws.points import FlopModel, Points
from bigjax.science.laws.power_law import PowerLawFit
from bigjax.science.laws.study import Study

FILE = "law.json"

FORMAT = 1

STARS = (1e-8, 1e8)
"""Between these R* of repeated data is told apart; beyond, one more repetition is worth nothing, or all."""

PREFERRED = ("formula", "data_constrained", "parametric", "power", "isoflop", "envelope")
"""Which law of a folder is meant where none is named: the one that knows most of these."""


def laws_of(found: Study) -> dict[str, Law]:
    """Return the laws of a study by method; those of the loss carry that of the accuracy, if there is one."""
    points, link = found.points, None
    downstream = found.others.get("downstream")
    if isinstance(downstream, DownstreamFit):
        link = _of_formula(downstream.fit, {"L": downstream.loss_range}, points, "downstream")
    laws = {}
    for method, fit in found.fits().items():
        if method != "downstream":
            law = _law(fit, found, method)
            laws[method] = law if link is None or law.formula is None else law.with_accuracy(link)
    return laws


def save(found: Study, folder: str | Path) -> None:
    """Write the laws of a study to `law.json` in a folder."""
    laws = {method: _to_json(law) for method, law in laws_of(found).items()}
    write_text(Path(folder) / FILE, dumps({"format": FORMAT, "laws": laws}) + "\n")


def load_fit(folder: str | Path, method: str | None = None) -> Law:
    """Return a law that `experiments.fit --out=FOLDER` fitted: that of a method, or else the first of `PREFERRED`.

    Raises:
        UserError: the folder holds no fit, or none by this method, or the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no fit: there is no {FILE}; write one by bigjax fit --out={folder}")
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} is of format {brief(content['format'])}, and this version reads {FORMAT}: fit again"
            )
        laws = content["laws"]
        if not laws:
            raise UserError(f"{path} holds no law of a loss or a frontier: fit --method=parametric, too")
        name = method or next(name for name in PREFERRED if name in laws)
        if name not in laws:
            raise UserError(f"{path} holds no law by {brief(name, 60)}: it has {listed(laws)}")
        return _from_json(laws[name])


def _law(fit: Any, found: Study, method: str) -> Law:
    points = found.points
    ranges = _ranges(points)
    common = {"method": method, "fitted": ranges, "flop_model": points.flop_model()}
    if isinstance(fit, FormulaFit):
        return _of_formula(fit, ranges, points, method)
    with np.errstate(over="ignore"):
        if isinstance(fit, ParametricFit):
            plain = np.concatenate([np.exp(fit.replicates[:, :3]), fit.replicates[:, 3:]], axis=1)
            noise = _noise(fit.residuals, len(fit.parameters))
            return Law(parse(CHINCHILLA), fit.parameters, replicates=plain, noise=noise, **common)
        if isinstance(fit, DataConstrainedFit):
            known = fit.base.parameters
            stars = np.exp(np.clip(fit.replicates, *np.log(STARS)))
            plain = np.concatenate([np.tile(list(known.values()), (len(stars), 1)), stars], axis=1)
            parameters = {**known, **fit.parameters}
            columns = points.columns()
            formula = parse(REPEATED)
            errors = np.log(points.loss / formula.value({**columns, **parameters}))
            return Law(formula, parameters, replicates=plain, noise=_noise(errors, 2), **common)
        if isinstance(fit, FrontierFit):
            n, a, d, b = fit.replicates.T
            plain = np.stack([np.exp(n - a * fit.centre), a, np.exp(d - b * fit.centre), b], axis=1)
            return Law(None, fit.parameters, replicates=plain, **common)
        assert isinstance(fit, PowerLawFit)
        x = found.choices.x
        text = f"irreducible + coefficient*{x}**exponent"
        residuals = np.log(points.loss / fit.predict(points.columns()[x]))
        return Law(parse(text), fit.parameters, replicates=fit.plain, noise=_noise(residuals, 3), **common)


def _of_formula(fit: FormulaFit, ranges: Mapping[str, tuple[float, float]], points: Points, method: str) -> Law:
    return Law(
        fit.formula,
        fit.parameters,
        method,
        fit.error,
        fit.replicates,
        _noise(fit.residuals, len(fit.parameters)),
        ranges,
        points.flop_model(),
    )


def _noise(residuals: np.ndarray, num_parameters: int) -> np.ndarray:
    """Return the errors of a new run: those of the runs fitted, which the fit has made smaller."""
    return residuals * np.sqrt(len(residuals) / max(len(residuals) - num_parameters, 1))


def _ranges(points: Points) -> dict[str, tuple[float, float]]:
    found = {}
    for name, values in points.columns().items():
        known = values[np.isfinite(values)]
        if len(known):
            found[name] = (float(known.min()), float(known.max()))
    return found


def _to_json(law: Law) -> dict[str, Any]:
    return {
        "law": law.formula.source if law.formula else None,
        "method": law.method,
        "parameters": dict(law.parameters),
        "error": law.error,
        "flop_model": [law.flop_model.coefficient, law.flop_model.size_exponent],
        "fitted": {name: list(ends) for name, ends in law.fitted.items()},
        "noise": law.noise.tolist(),
        "replicates": law.replicates.tolist(),
        "accuracy_of": _to_json(law.accuracy_of) if law.accuracy_of else None,
    }


def _from_json(stored: dict[str, Any]) -> Law:
    parameters = {name: float(value) for name, value in stored["parameters"].items()}
    rows = [[float(value) for value in row] for row in stored["replicates"]]
    return Law(
        parse(stored["law"]) if stored["law"] is not None else None,
        parameters,
        stored["method"],
        stored["error"],
        np.array(rows, float).reshape(len(rows), len(parameters)),
        np.array([float(value) for value in stored["noise"]]),
        {name: (float(low), float(high)) for name, (low, high) in stored["fitted"].items()},
        FlopModel(*map(float, stored["flop_model"])),
        _from_json(stored["accuracy_of"]) if stored["accuracy_of"] else None,
    )
