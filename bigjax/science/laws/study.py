"""A study of scaling laws: every fit asked for, its checks, and what they say of budgets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from bigjax.science.laws.data_constrained import DataConstrainedFit, fit_data_constrained
from bigjax.science.laws.design import Design, design_next
from bigjax.science.laws.diagnostics.held_out import compare, without_each_budget
from bigjax.science.laws.diagnostics.residuals import leverage, trends
from bigjax.science.laws.downstream import DownstreamFit, Link, fit_downstream
from bigjax.science.laws.envelope import fit_envelope
from bigjax.science.laws.formula.expression import parse
from bigjax.science.laws.formula.fit import ErrorOf, FormulaFit, Objective, fit_formula
from bigjax.science.laws.formula.law import CHINCHILLA, Law
from bigjax.science.laws.formula.options import Asked
from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.interpolate import Interpolate
from bigjax.science.laws.isoflop import compare_curves, fit_isoflop
from bigjax.science.laws.parametric import ParametricFit
from bigjax.science.laws.points import Points
from bigjax.science.laws.power_law import PowerLawFit, fit_power_law
from bigjax.science.laws.robust import FitError

METHODS = ("parametric", "isoflop", "envelope")
"""The methods of Hoffmann et al. 2022, which need nothing but sizes, tokens and losses."""

OTHERS = ("power", "data_constrained", "downstream", "formula")
"""Further laws; the last is one of the user's own."""

Fit = ParametricFit | FrontierFit | PowerLawFit | DataConstrainedFit | DownstreamFit | FormulaFit

POSITIVE = Asked(bounds=dict.fromkeys(("E", "A", "B"), (0.0, np.inf)))
"""What the parametric law asks of its constants."""

FLOPS_OFF = 0.1
"""How far recorded FLOPs may be from a power of N times D without a word: budgets are as wide."""


@dataclass(frozen=True)
class Choices:
    """How the laws are fitted that can be in several ways.

    Attributes:
        law: the formula of one's own, of the loss; asked: its bounds, ties and starts.
        error, loss: whether it errs in log loss or loss, and how errors count.
        x: the column of the power law.
        base: the law of data seen once of the data-constrained one; fitted if absent.
        link: how the accuracy follows from the loss.
        interpolate, window: of isoFLOP curves, see `fit_isoflop`.
        against: a second formula, to compare by held-out errors with the first, or with the parametric law.
    """

    law: str | None = None
    asked: Asked = field(default_factory=Asked)
    error: ErrorOf = "log"
    loss: Objective = "huber"
    x: str = "C"
    base: Law | None = None
    link: Link = "sigmoid"
    interpolate: Interpolate = "parabola"
    window: float | None = None
    against: str | None = None


@dataclass(frozen=True)
class Study:
    """Fits of the same points; `skipped` says for each method, and each check, why there is none."""

    points: Points
    parametric: ParametricFit | None = None
    isoflop: FrontierFit | None = None
    envelope: FrontierFit | None = None
    others: Mapping[str, Fit] = field(default_factory=dict)
    choices: Choices = field(default_factory=Choices)
    optimal: dict[str, list[Optimum]] = field(default_factory=dict)
    extrapolation: Extrapolation | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    design: Design | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def diagnosed(self) -> str | None:
        """The method whose residuals are looked at closely: one's own law, or else the parametric one."""
        return next((name for name in ("formula", "parametric") if f"diagnostics_{name}" in self.checks), None)

    def fits(self) -> dict[str, Fit]:
        """Return the fits by method."""
        found = {"parametric": self.parametric, "isoflop": self.isoflop, "envelope": self.envelope}
        return {method: fit for method, fit in found.items() if fit is not None} | dict(self.others)


def study(
    points: Points,
    methods: Sequence[str],
    *,
    delta: float = 1e-3,
    bootstrap: int = 400,
    seed: int = 0,
    flops: Sequence[float] = (),
    next_budget: float | None = None,
    choices: Choices | None = None,
    needed: str | None = None,
) -> Study:
    """Fit `points` by each method, with checks, optima at `flops` and, with `next_budget`, the runs to make next.

    Raises:
        FitError: the only method asked for, or every one of several, is impossible, or the one `needed` is.
    """
    choices = choices or Choices()
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
        "isoflop": lambda: fit_isoflop(points, interpolate=choices.interpolate, window=choices.window, **how),
        "envelope": lambda: fit_envelope(points, **how),
        "power": lambda: _power(points, choices.x, delta, how),
        "data_constrained": lambda: _repeated(points, choices.base, delta, how),
        "downstream": lambda: _downstream(points, choices.link, how),
        "formula": lambda: fit_own(points, choices, delta=delta, **how),
    }
    fits = {method: attempt(method, work[method]) for method in methods}
    if needed in skipped:
        raise FitError(skipped[needed])
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
        checks["curves"] = compare_curves(points, choices.window)
        curve = {"interpolate": choices.interpolate, "window": choices.window}
        checks["holdout_isoflop"] = attempt("holdout.isoflop", lambda: hold_out_optimum(points, **how, **curve))
    if law and curves:
        checks["isoflop_bias"] = attempt("isoflop.curvature_bias", lambda: isoflop_bias(points, law, curves))
    own = fits.get("formula")
    if own:
        left_out = attempt("leave_one_budget_out", lambda: without_each_budget(points, fitter(choices, delta)))
        checks["leave_one_budget_out_formula"] = left_out[1] if left_out else []
    for method, fit in (("parametric", law), ("formula", own)):
        if fit:
            checks[f"diagnostics_{method}"] = _diagnose(points, fit)
    if choices.against is not None:
        checks["comparison"] = attempt("comparison", lambda: _compare(points, choices, delta))
    if next_budget is not None:
        if law is None:
            raise FitError("the next runs are chosen for the parametric law, which was not fitted")
        design = design_next(law, next_budget)
    budgets = list(flops) or decades(points)
    optimal = {
        method: attempt(f"optimal.{method}", lambda fit=fit: compute_optimal(fit, budgets)) or []
        for method, fit in fits.items()
        if fit and method in METHODS
    }
    return Study(
        points,
        **{method: fits.get(method) for method in METHODS},
        others={method: fits[method] for method in OTHERS if fits.get(method)},
        choices=choices,
        optimal=optimal,
        extrapolation=extrapolation,
        checks=checks,
        design=design,
        skipped=skipped,
    )


def fit_own(
    points: Points, choices: Choices, *, delta: float = 1e-3, bootstrap: int = 400, seed: int = 0
) -> FormulaFit:
    """Fit the formula of `choices` to the losses of points; names that are columns of these are variables.

    Raises:
        FitError: as `fit_formula`; a column has no value for some run.
    """
    assert choices.law is not None
    columns, names = points.columns(), parse(choices.law).names
    if "U" in names and "U" not in columns:
        raise FitError("the law names U, unique tokens, and the points have no column unique_tokens")
    if "L" in names and "L" not in columns:
        raise FitError("the law names L, the loss, which is what it is to say: leave it out")
    return fit_formula(
        choices.law,
        columns,
        points.loss,
        asked=choices.asked,
        error=choices.error,
        loss=choices.loss,
        weight=points.weight,
        delta=delta,
        bootstrap=bootstrap,
        seed=seed,
    )


def fitter(choices: Choices, delta: float) -> Callable[[Points], FormulaFit]:
    """Return what fits the formula of `choices`, or the parametric law, to points, without intervals."""
    law = choices.law if choices.law is not None else CHINCHILLA
    asked = choices.asked if choices.law is not None else POSITIVE
    return lambda points: fit_own(points, replace(choices, law=law, asked=asked), delta=delta, bootstrap=0)


def _compare(points: Points, choices: Choices, delta: float) -> dict[str, Any]:
    """Return the comparison of the law asked for with `choices.against`, which starts from a grid without bounds."""
    other = replace(choices, law=choices.against, asked=Asked())
    names = (choices.law or CHINCHILLA, choices.against or "")
    return compare(points, fitter(choices, delta), fitter(other, delta), names)


def _diagnose(points: Points, fit: ParametricFit | FormulaFit) -> dict[str, Any]:
    """Return trends of the residuals against each column, and leverages."""
    columns = {"N": points.params, "D": points.tokens, "C": points.flops, "D/N": points.tokens / points.params}
    if isinstance(fit, FormulaFit):
        columns |= {name: points.columns()[name] for name in fit.variables}
    return {
        "trends": trends(fit.residuals, columns, points.weight),
        "leverage": leverage(fit.residuals, fit.jacobian, points.weight, points.names),
    }


def decades(points: Points) -> list[float]:
    """Return the powers of ten from the smallest budget to a hundred times the largest."""
    first, last = np.floor(np.log10(points.flops.min()) + 0.01), np.ceil(np.log10(points.flops.max()) - 0.01) + 2
    return [float(f"1e{int(power)}") for power in np.arange(first, last + 1)]


def _power(points: Points, x: str, delta: float, how: dict[str, int]) -> PowerLawFit:
    return fit_power_law(points.columns()[x], points.loss, irreducible=True, weight=points.weight, delta=delta, **how)


def _repeated(points: Points, base: Law | None, delta: float, how: dict[str, int]) -> DataConstrainedFit:
    unique = _column(points, "unique_tokens", "data-constrained")
    if (lacking := np.flatnonzero(~np.isfinite(unique))).size:
        raise FitError(f"{points.names[lacking[0]]} has no unique_tokens: how many of its tokens are distinct?")
    return fit_data_constrained(points.params, points.tokens, unique, points.loss, base=base, delta=delta, **how)


def _downstream(points: Points, link: Link, how: dict[str, int]) -> DownstreamFit:
    return fit_downstream(points.loss, _column(points, "accuracy", "downstream"), link=link, **how)


def _column(points: Points, name: str, law: str) -> np.ndarray:
    if name not in points.extra:
        raise FitError(f"the {law} law needs the column {name}: --columns={name}=NAME says how a CSV calls it")
    return points.extra[name]
