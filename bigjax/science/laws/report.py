"""A study of scaling laws as JSON and as a table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bigjax.science.laws.data_constrained import DataConstrainedFit
from bigjax.science.laws.diagnostics.held_out import verdict
from bigjax.science.laws.diagnostics.residuals import sentences
from bigjax.science.laws.downstream import LINKS, DownstreamFit
from bigjax.science.laws.formula.fit import FormulaFit
from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.parametric import ParametricFit
from bigjax.science.laws.study import Fit, Study


def to_json(found: Study) -> dict[str, Any]:
    """Return the study as `fit.json`."""
    conventions = found.points.conventions.describe()
    model = found.points.flop_model()
    conventions["flop_model"] = model.describe()
    methods = {method: _fit_json(fit) for method, fit in found.fits().items()}
    if found.parametric:
        methods["parametric"]["leave_one_budget_out"] = found.checks["leave_one_budget_out"]
        methods["parametric"]["sensitivity"] = found.checks["sensitivity"]
    for method in ("parametric", "formula"):
        if diagnosed := found.checks.get(f"diagnostics_{method}"):
            methods[method]["diagnostics"] = diagnosed
    if "formula" in methods:
        methods["formula"]["leave_one_budget_out"] = found.checks["leave_one_budget_out_formula"]
    if found.checks.get("isoflop_bias"):
        methods["isoflop"]["curvature_bias"] = found.checks["isoflop_bias"]
    if found.checks.get("curves"):
        methods["isoflop"] |= {"interpolate": found.choices.interpolate, "window": found.choices.window}
        methods["isoflop"]["curves"] = found.checks["curves"]
    holdout = {
        "parametric": found.extrapolation.summary() if found.extrapolation else None,
        "isoflop": found.checks.get("holdout_isoflop"),
    }
    return methods | {
        "n_points": len(found.points),
        "notes": list(found.points.notes),
        "excluded": [asdict(point) for point in found.points.excluded],
        "conventions": conventions,
        "optimal": {method: [asdict(row) for row in rows] for method, rows in found.optimal.items() if rows},
        "holdout": {method: result for method, result in holdout.items() if result is not None},
        "comparison": found.checks.get("comparison"),
        "next_runs": asdict(found.design) if found.design else None,
        "skipped": found.skipped,
    }


def _fit_json(fit: Fit) -> dict[str, Any]:
    common = {
        **fit.parameters,
        "ci95": fit.ci95,
        "objective": fit.objective,
        "n_points": fit.n_points,
        "converged": fit.converged,
        "warnings": list(fit.warnings),
        "bootstrap_replicates": len(fit.fit.replicates if isinstance(fit, DownstreamFit) else fit.replicates),
    }
    if isinstance(fit, FormulaFit):
        names = {"law": fit.formula.text, "variables": list(fit.variables), "tied": dict(fit.ties)}
        how = {"error": fit.error, "loss": fit.loss, "starts_agree": fit.starts_agree}
        return common | names | how | {"n_distinct": fit.n_clusters}
    if isinstance(fit, DownstreamFit):
        return common | {"link": fit.link, "law": LINKS[fit.link], "losses": list(fit.loss_range)}
    if isinstance(fit, DataConstrainedFit):
        return common | {"base": fit.base.parameters}
    if isinstance(fit, ParametricFit):
        return common | {
            "n_distinct": fit.n_clusters,
            "delta": fit.delta,
            "replicates_converged": fit.replicates_converged,
            "rms_log_residual": float(np.sqrt(np.mean(fit.residuals**2))),
        }
    if not isinstance(fit, FrontierFit):
        return common
    common["excluded"] = [asdict(point) for point in fit.excluded]
    if len(fit.parabolas):
        columns = zip(*(map(float, c) for c in (fit.flops, fit.params, fit.tokens, fit.loss)), strict=True)
        common["minima"] = [dict(zip("CND", row, strict=False), loss=row[3]) for row in columns]
    return common


def to_markdown(found: Study) -> str:
    """Return the study as tables for people."""
    points, text = found.points, []
    sizes = len(np.unique(points.params))
    text.append(
        f"{len(points)} points, {sizes} sizes from {points.params.min():.3g} to {points.params.max():.3g} parameters "
        f"({points.conventions.params}), {points.flops.min():.3g} to {points.flops.max():.3g} FLOPs "
        f"({points.conventions.flops})"
    )
    text += [f"note: {note}" for note in points.notes]
    for method, fit in found.fits().items():
        rows = [(name, f"{value:.5g}", _range(fit.ci95[name])) for name, value in fit.parameters.items()]
        note = "" if fit.converged else ", NOT CONVERGED"
        text.append(f"{method}{_of(found, method)}: {fit.n_points} points, objective {fit.objective:.4g}{note}")
        text.append(_table(("parameter", "estimate", "95 % interval"), rows))
        text += [f"warning: {warning}" for warning in fit.warnings]
    for method, optima in found.optimal.items():
        rows = [
            (
                f"{row.C:.3g}",
                f"{row.N:.3g} {_range(row.ci95['N'], 3)}",
                f"{row.D:.3g} {_range(row.ci95['D'], 3)}",
                f"{row.tokens_per_parameter:.3g} {_range(row.ci95['tokens_per_parameter'], 3)}",
                "" if row.loss is None else f"{row.loss:.4f}",
            )
            for row in optima
        ]
        text.append(f"compute-optimal by {method}:")
        text.append(_table(("C (FLOPs)", "N (parameters)", "D (tokens)", "D / N", "loss"), rows))
    text += list(_findings(found))
    return "\n\n".join(text) + "\n"


def _of(found: Study, method: str) -> str:
    """Return what a method's name does not say of its law."""
    fit, choices = found.fits()[method], found.choices
    if isinstance(fit, FormulaFit):
        tied = "".join(f", {name} = {other}" for name, other in fit.ties.items())
        error = "log loss" if fit.error == "log" else "loss"
        kind = "Huber loss" if fit.loss == "huber" else "squares"
        columns, names = ", ".join(fit.variables), ", ".join(fit.parameters)
        return f" {fit.formula.text}{tied} (columns {columns}; parameters {names}; {kind} of errors of {error})"
    if isinstance(fit, DownstreamFit):
        return f" accuracy = {LINKS[fit.link]}, L the loss"
    if isinstance(fit, DataConstrainedFit):
        constants = ", ".join(f"{name} = {value:.5g}" for name, value in fit.base.parameters.items())
        known = "given" if choices.base is not None else "fitted to the runs that repeat nothing, taken as known"
        return f" (law of data seen once, {known}: {constants})"
    if method == "power":
        return f" loss = irreducible + coefficient * {choices.x}**exponent"
    return ""


def _findings(found: Study):
    """Yield a line for each check, each proposed run, and each thing that was left out."""
    if held := found.extrapolation:
        yield (
            f"held out: fitted up to {held.trained_flops:.3g} FLOPs, the law predicts the {len(held.loss)} runs at "
            f"{held.flops:.3g} FLOPs with an error of {held.summary()['rms_relative_error']:.2%} (rms); "
            + (
                f"{held.inside.sum()} of {len(held.loss)} lie in their 95 % interval"
                if held.has_intervals
                else "no intervals, since it was fitted to no more points than it has parameters"
            )
        )
    if held := found.checks.get("holdout_isoflop"):
        yield (
            f"held out: isoFLOP curves of the smaller budgets predict the best size at {held['flops']:.3g} FLOPs as "
            f"{held['predicted_N']:.3g} {_range(held['ci95'], 3)}; its own curve says {held['N']:.3g}"
        )
    if rows := found.checks.get("curves"):
        yield from _curves(rows)
    if bias := found.checks.get("isoflop_bias"):
        curves = {"parabola": "parabolas", "cubic": "cubics", "akima": "Akima curves"}[found.choices.interpolate]
        yield (
            f"curvature: were the parametric law exact, the {curves} would err by {bias['N_exponent']:+.4f} in the "
            f"exponent and a factor of {bias['size_at_most_flops']:.3f} in the size at the largest budget"
        )
    for method in ("parametric", "formula"):
        if diagnosed := found.checks.get(f"diagnostics_{method}"):
            parameters = len(found.fits()[method].parameters)
            for sentence in sentences(diagnosed["trends"], diagnosed["leverage"], parameters):
                yield f"{method} {sentence}"
    if rows := [row for row in found.checks.get("leave_one_budget_out_formula", ()) if "skipped" not in row]:
        worst = max(rows, key=lambda row: row["rms_relative_error"])
        yield (
            f"left out: fitted without each of {len(rows)} budgets in turn, the law errs most on that of "
            f"{worst['flops']:.3g} FLOPs, by {worst['rms_relative_error']:.2%} (rms)"
        )
    if comparison := found.checks.get("comparison"):
        yield verdict(comparison)
    if design := found.design:
        rows = [(f"{run.N:.3g}", f"{run.D:.3g}", f"{run.C:.3g}") for run in design.runs]
        yield (
            f"next runs: these shrink the interval of the best size at {design.target_flops:.3g} FLOPs "
            f"from a factor of {design.size_factor_before:.2f} to {design.size_factor_after:.2f} (expected)"
        )
        yield _table(("N (parameters)", "D (tokens)", "C (FLOPs)"), rows)
    for name, reason in found.skipped.items():
        yield f"skipped {name}: {reason}"
    listed = [
        *found.points.excluded,
        *(point for fit in (found.isoflop, found.envelope) if fit for point in fit.excluded),
    ]
    reasons = dict.fromkeys(point.reason for point in listed)
    for reason in reasons:
        yield f"excluded {', '.join(dict.fromkeys(p.point for p in listed if p.reason == reason))}: {reason}"


def _curves(rows: Sequence[dict[str, Any]]):
    """Yield what the choice of isoFLOP curve and window changes."""
    names = list(dict.fromkeys(row["interpolate"] for row in rows))
    table = []
    for window in dict.fromkeys(row["window"] for row in rows):
        cells = ["all sizes" if window is None else f"within {window:g} times"]
        for row in rows:
            if row["window"] == window:
                cells.append("none" if "skipped" in row else f"{row['N_exponent']:.4f}, {row['N']:.3g}")
        table.append(cells)
    found = [row["N_exponent"] for row in rows if "skipped" not in row]
    yield (
        f"curves: the exponent of N is {min(found):.4f} to {max(found):.4f} by curve and window about the best size, "
        "here with the best N at the largest budget:"
    )
    yield _table(("sizes", *names), table)


def _range(ends: list[float] | None, digits: int = 5) -> str:
    return "[none]" if ends is None else f"[{ends[0]:.{digits}g}, {ends[1]:.{digits}g}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in lines)
