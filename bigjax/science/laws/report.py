"""A study of scaling laws: every fit asked for, its checks, and all of it as JSON and as a table."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from bigjax.science.laws.checks import (
    Extrapolation,
    fit_points,
    hold_out_largest,
    hold_out_optimum,
    isoflop_bias,
    leave_one_budget_out,
    sensitivity,
)
from bigjax.science.laws.compute_optimal import Optimum, compute_optimal
from bigjax.science.laws.design import Design, design_next
from bigjax.science.laws.envelope import fit_envelope
from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.isoflop import fit_isoflop
from bigjax.science.laws.parametric import ParametricFit
from bigjax.science.laws.points import Points
from bigjax.science.laws.robust import FitError

METHODS = ("parametric", "isoflop", "envelope")

FLOPS_OFF = 0.1
"""How far recorded FLOPs may be from a power of N times D without a word: budgets are as wide."""


@dataclass(frozen=True)
class Study:
    """Fits of the same points; `skipped` says for each method, and each check, why there is none."""

    points: Points
    parametric: ParametricFit | None = None
    isoflop: FrontierFit | None = None
    envelope: FrontierFit | None = None
    optimal: dict[str, list[Optimum]] = field(default_factory=dict)
    extrapolation: Extrapolation | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    design: Design | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def fits(self) -> dict[str, ParametricFit | FrontierFit]:
        """Return the fits by method."""
        found = {"parametric": self.parametric, "isoflop": self.isoflop, "envelope": self.envelope}
        return {method: fit for method, fit in found.items() if fit is not None}


def study(
    points: Points,
    methods: Sequence[str],
    *,
    delta: float = 1e-3,
    bootstrap: int = 400,
    seed: int = 0,
    flops: Sequence[float] = (),
    next_budget: float | None = None,
) -> Study:
    """Fit `points` by each method, with checks, optima at `flops` and, with `next_budget`, the runs to make next.

    Raises:
        FitError: the only method asked for, or every one of several, is impossible.
    """
    model = points.flop_model()  # nothing is fitted, or written, where FLOPs make no sense
    off = np.abs(model.coefficient * points.params**model.size_exponent * points.tokens / points.flops - 1).max()
    if off > FLOPS_OFF:
        note = f"optima take FLOPs as {model.describe()}, from which the recorded ones are up to {off:.0%} away"
        points = replace(points, notes=(*points.notes, note))
    how = {"bootstrap": bootstrap, "seed": seed}
    skipped: dict[str, str] = {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except FitError as error:
            skipped[name] = str(error)
            return None

    work: dict[str, Callable[[], Any]] = {
        "parametric": lambda: fit_points(points, delta=delta, **how),
        "isoflop": lambda: fit_isoflop(points, **how),
        "envelope": lambda: fit_envelope(points, **how),
    }
    fits = {method: attempt(method, work[method]) for method in methods}
    if all(fit is None for fit in fits.values()):
        reasons = "; ".join(skipped.values())
        raise FitError(reasons if len(methods) == 1 else f"no law can be fitted: {reasons}")
    law, curves, checks = fits.get("parametric"), fits.get("isoflop"), {}
    extrapolation = design = None
    if law:
        extrapolation = attempt("holdout.parametric", lambda: hold_out_largest(points, delta=delta, **how))
        checks["leave_one_budget_out"] = leave_one_budget_out(points, law)
        checks["sensitivity"] = sensitivity(points, law)
    if curves:
        checks["holdout_isoflop"] = attempt("holdout.isoflop", lambda: hold_out_optimum(points, **how))
    if law and curves:
        checks["isoflop_bias"] = attempt("isoflop.curvature_bias", lambda: isoflop_bias(points, law, curves))
    if next_budget is not None:
        if law is None:
            raise FitError("the next runs are chosen for the parametric law, which was not fitted")
        design = design_next(law, next_budget)
    budgets = list(flops) or decades(points)
    optimal = {
        method: attempt(f"optimal.{method}", lambda fit=fit: compute_optimal(fit, budgets)) or []
        for method, fit in fits.items()
        if fit
    }
    return Study(
        points, **fits, optimal=optimal, extrapolation=extrapolation, checks=checks, design=design, skipped=skipped
    )


def decades(points: Points) -> list[float]:
    """Return the powers of ten from the smallest budget to a hundred times the largest."""
    first, last = np.floor(np.log10(points.flops.min()) + 0.01), np.ceil(np.log10(points.flops.max()) - 0.01) + 2
    return [float(f"1e{int(power)}") for power in np.arange(first, last + 1)]


def to_json(found: Study) -> dict[str, Any]:
    """Return the study as `fit.json`."""
    conventions = found.points.conventions.describe()
    model = found.points.flop_model()
    conventions["flop_model"] = model.describe()
    methods = {method: _fit_json(fit) for method, fit in found.fits().items()}
    if found.parametric:
        methods["parametric"]["leave_one_budget_out"] = found.checks["leave_one_budget_out"]
        methods["parametric"]["sensitivity"] = found.checks["sensitivity"]
    if found.checks.get("isoflop_bias"):
        methods["isoflop"]["curvature_bias"] = found.checks["isoflop_bias"]
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
        "next_runs": asdict(found.design) if found.design else None,
        "skipped": found.skipped,
    }


def _fit_json(fit: ParametricFit | FrontierFit) -> dict[str, Any]:
    common = {
        **fit.parameters,
        "ci95": fit.ci95,
        "objective": fit.objective,
        "n_points": fit.n_points,
        "converged": fit.converged,
        "warnings": list(fit.warnings),
        "bootstrap_replicates": len(fit.replicates),
    }
    if isinstance(fit, ParametricFit):
        return common | {
            "n_distinct": fit.n_clusters,
            "delta": fit.delta,
            "replicates_converged": fit.replicates_converged,
            "rms_log_residual": float(np.sqrt(np.mean(fit.residuals**2))),
        }
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
        text.append(f"{method}: {fit.n_points} points, objective {fit.objective:.4g}{note}")
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
    if bias := found.checks.get("isoflop_bias"):
        yield (
            f"curvature: were the parametric law exact, the parabolas would err by {bias['N_exponent']:+.4f} in the "
            f"exponent and a factor of {bias['size_at_most_flops']:.3f} in the size at the largest budget"
        )
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


def _range(ends: list[float] | None, digits: int = 5) -> str:
    return "[none]" if ends is None else f"[{ends[0]:.{digits}g}, {ends[1]:.{digits}g}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in lines)
