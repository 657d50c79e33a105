"""Laws judged by budgets that they have not seen."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from bigjax.science.laws.checks import budget_groups
from bigjax.science.laws.formula.fit import FormulaFit
from bigjax.science.laws.points import Points
from bigjax.science.laws.robust import FitError

Fitter = Callable[[Points], FormulaFit]
"""Fits a law to points."""


def without_each_budget(points: Points, fitter: Fitter) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the log errors `(n,)` of predictions by fits that have not seen a point's budget, and a row for each.

    A budget without which the law cannot be fitted has NaN and a reason.

    Raises:
        FitError: all runs have one budget.
    """
    group = budget_groups(points)
    if group.max() < 1:
        raise FitError("no budget can be left out: all runs have the same compute budget")
    errors, rows = np.full(len(points), np.nan), []
    for budget in range(group.max() + 1):
        inside = group == budget
        out = points.take(inside)
        row: dict[str, Any] = {"flops": float(np.median(out.flops)), "n_held_out": len(out)}
        try:
            fit = fitter(points.take(~inside))
        except FitError as error:
            rows.append(row | {"skipped": str(error)})
            continue
        with np.errstate(all="ignore"):
            errors[inside] = np.log(np.broadcast_to(fit.predict(out.columns()), len(out)) / out.loss)
        rows.append(row | fit.parameters | {"rms_relative_error": _rms(errors[inside])})
    return errors, rows


def compare(points: Points, first: Fitter, second: Fitter, names: tuple[str, str]) -> dict[str, Any]:
    """Compare two laws by their errors on budgets left out, each budget being one observation.

    The verdict is that of Student's t interval of the difference of mean absolute log errors. The largest budget, the
    only one that is extrapolated to, is shown apart.

    Raises:
        FitError: fewer than 3 budgets can be left out of both laws.
    """
    group = budget_groups(points)
    errors = [without_each_budget(points, fitter)[0] for fitter in (first, second)]
    both = np.isfinite(errors[0]) & np.isfinite(errors[1])
    budgets = np.unique(group[both])
    if len(budgets) < 3:
        raise FitError(f"two laws are compared on at least 3 budgets left out of both, and here are {len(budgets)}")
    means = np.array([[np.abs(each[both & (group == k)]).mean() for k in budgets] for each in errors])
    difference = means[0] - means[1]
    half = stats.t.ppf(0.975, len(budgets) - 1) * stats.sem(difference)
    middle = float(difference.mean())
    low, high = middle - half, middle + half
    better = 0 if high < 0 else 1 if low > 0 else None
    last = both & (group == budgets[-1])
    return {
        "laws": list(names),
        "rms_relative_error": [_rms(each[both]) for each in errors],
        "largest_budget": [_rms(each[last]) for each in errors],
        "budgets": len(budgets),
        "difference": middle,
        "ci95": [float(low), float(high)],
        "better": None if better is None else names[better],
    }


def verdict(found: dict[str, Any]) -> str:
    """Return the comparison as one sentence."""
    (first, second), (one, other) = found["laws"], found["rms_relative_error"]
    low, high = found["ci95"]
    said = f"{found['better']} is better" if found["better"] else "not decidable with these runs"
    at_most, at_most_other = found["largest_budget"]
    return (
        f"comparison: on {found['budgets']} budgets left out one by one, {first} errs by {one:.3%} and {second} by "
        f"{other:.3%} (rms), the largest of them by {at_most:.3%} and {at_most_other:.3%}; the mean difference is "
        f"{100 * found['difference']:+.4f} [{100 * low:.4f}, {100 * high:.4f}] %: {said}"
    )


def _rms(log_error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.expm1(log_error) ** 2)))
