"""Whether a fit can be trusted: extrapolation to what it has not seen, and how much hangs on single choices."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.science.laws.compute_optimal import compute_optimal, optimal_logs
from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.isoflop import fit_isoflop
from bigjax.science.laws.parametric import ParametricFit, fit_parametric, log_loss_model, named, refit
from bigjax.science.laws.points import Points, budgets
from bigjax.science.laws.robust import FitError

MAX_GROUPS = 12
"""Where runs have more compute budgets than this, those within half a decade of FLOPs are one."""

DELTAS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of delta tried: the first is nearly least absolute, the last nearly least squares."""


@dataclass(frozen=True)
class Extrapolation:
    """What a fit to smaller budgets says of a budget it has not seen.

    Attributes:
        flops: the budget held out; trained_flops: the largest budget fitted.
        params, tokens, loss, predicted: `(k,)` of the runs held out; ci95: `(2, k)`, with the noise of a run.
        log_error: `(k,)` log(predicted / loss).
    """

    flops: float
    trained_flops: float
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    predicted: np.ndarray
    ci95: np.ndarray

    @property
    def log_error(self) -> np.ndarray:
        return np.log(self.predicted / self.loss)

    @property
    def inside(self) -> np.ndarray:
        """Whether each loss lies in its interval; False where there is none."""
        return (self.ci95[0] <= self.loss) & (self.loss <= self.ci95[1])

    @property
    def has_intervals(self) -> bool:
        """Whether the points fitted were more than the law has parameters."""
        return bool(np.isfinite(self.ci95).all())

    def summary(self) -> dict[str, Any]:
        """Return the errors as JSON."""
        return {
            "flops": self.flops,
            "fitted_up_to": self.trained_flops,
            "n_held_out": len(self.loss),
            "mean_error": float(np.mean(self.predicted - self.loss)),
            "rms_relative_error": float(np.sqrt(np.mean(np.expm1(self.log_error) ** 2))),
            "inside_ci95": int(self.inside.sum()) if self.has_intervals else None,
            "points": [
                {
                    "N": n,
                    "D": d,
                    "loss": loss,
                    "predicted": predicted,
                    "ci95": [low, high] if self.has_intervals else None,
                }
                for n, d, loss, predicted, low, high in zip(
                    *(map(float, c) for c in (self.params, self.tokens, self.loss, self.predicted, *self.ci95)),
                    strict=True,
                )
            ],
        }


def budget_groups(points: Points) -> np.ndarray:
    """Return the index `(n,)` of each point's compute budget; see `MAX_GROUPS`."""
    fine = budgets(points.flops)
    return fine if fine.max() < MAX_GROUPS else budgets(points.flops, tolerance=10**0.5 - 1)


def hold_out_largest(points: Points, *, delta: float = 1e-3, bootstrap: int = 400, seed: int = 0) -> Extrapolation:
    """Fit the parametric law to all but the largest budget and predict its runs.

    Raises:
        FitError: there is one budget only, or the others have too few points.
    """
    group = budget_groups(points)
    if group.max() < 1:
        raise FitError("nothing can be held out: all runs have the same compute budget")
    small, large = points.take(group < group.max()), points.take(group == group.max())
    fit = fit_points(small, delta=delta, bootstrap=bootstrap, seed=seed)
    return Extrapolation(
        flops=float(np.median(large.flops)),
        trained_flops=float(small.flops.max()),
        params=large.params,
        tokens=large.tokens,
        loss=large.loss,
        predicted=fit.predict(large.params, large.tokens),
        ci95=fit.predict_interval(large.params, large.tokens, seed),
    )


def hold_out_optimum(points: Points, *, bootstrap: int = 400, seed: int = 0, **curve: Any) -> dict[str, Any]:
    """Fit isoFLOP curves of all but the largest budget, and compare with the minimum of the largest.

    `curve` are the `interpolate` and `window` of `fit_isoflop`.

    Raises:
        FitError: fewer than 3 budgets have a minimum.
    """
    full = fit_isoflop(points, bootstrap=0, **curve)
    if len(full.flops) < 3:
        raise FitError("nothing can be held out: isoFLOP curves of at least 2 smaller budgets are needed")
    largest = points.flops < full.flops.max() / 1.1
    smaller = fit_isoflop(points.take(largest), bootstrap=bootstrap, seed=seed, **curve)
    (predicted,) = compute_optimal(smaller, full.flops[-1])
    found, ends = float(full.params[-1]), predicted.ci95["N"]
    return {
        "flops": float(full.flops[-1]),
        "fitted_up_to": float(full.flops[-2]),
        "N": found,
        "predicted_N": predicted.N,
        "ci95": ends,
        "relative_error": predicted.N / found - 1,
        "inside_ci95": None if ends is None else ends[0] <= found <= ends[1],
    }


def fit_points(points: Points, **how) -> ParametricFit:
    """Return `fit_parametric` of points, with their weights and conventions."""
    return fit_parametric(
        points.params,
        points.tokens,
        points.loss,
        weight=points.weight,
        conventions=points.conventions,
        flop_model=points.flop_model(),
        **how,
    )


def leave_one_budget_out(points: Points, fit: ParametricFit) -> list[dict[str, Any]]:
    """Return for each budget what the fit to the others says: the parameters, and the error on the budget left out.

    With a single budget there is nothing to return.
    """
    group = budget_groups(points)
    if group.max() < 1:
        return []
    kept = group != np.arange(group.max() + 1)[:, None]
    rows: list[dict[str, Any]] = []
    for budget, theta in enumerate(_refit(points, fit, kept, fit.delta)):
        out = points.take(group == budget)
        row: dict[str, Any] = {"flops": float(np.median(out.flops)), "n_held_out": len(out)}
        if len(points) - len(out) < len(theta):
            rows.append(row | {"skipped": f"{len(points) - len(out)} points are too few for {len(theta)} parameters"})
            continue
        log_error = log_loss_model(np.log(out.params), np.log(out.tokens))(theta)[0] - np.log(out.loss)
        rows.append(row | named(theta) | {"rms_relative_error": float(np.sqrt(np.mean(np.expm1(log_error) ** 2)))})
    return rows


def sensitivity(points: Points, fit: ParametricFit, most: int = 5) -> dict[str, list[dict[str, Any]]]:
    """Return the parameters for other values of delta, and without each of the `most` influential points.

    The influence of a point is by what factor the compute-optimal size at the largest budget changes without it.
    """
    everything = np.ones((1, len(points)))
    deltas: list[dict[str, Any]] = [
        {"delta": delta} | named(_refit(points, fit, everything, delta)[0]) for delta in DELTAS
    ]
    without = _refit(points, fit, 1 - np.eye(len(points)), fit.delta)
    largest = np.log([points.flops.max()])
    sizes = optimal_logs(np.concatenate([fit.theta[None], without]), largest, fit.flop_model)[0][:, 0]
    moved = np.abs(sizes[1:] - sizes[0])
    order = np.argsort(-np.where(np.isnan(moved), np.inf, moved), kind="stable")[:most]
    dropped: list[dict[str, Any]] = [
        {"point": points.names[i], "N_optimal_factor": float(np.exp(sizes[1 + i] - sizes[0]))} | named(without[i])
        for i in order
    ]
    return {"delta": deltas, "dropped_points": dropped}


def _refit(points: Points, fit: ParametricFit, factors: np.ndarray, delta: float) -> np.ndarray:
    return refit(fit, points.params, points.tokens, points.loss, points.weight * factors, delta)


def isoflop_bias(points: Points, fit: ParametricFit, frontier: FrontierFit) -> dict[str, float]:
    """Return what isoFLOP curves get wrong where `fit` holds exactly: the fitted frontier over the true one.

    The curves of the parametric law are no parabolas, so wide or lopsided isoFLOP curves move the minima
    (`size_at_least_flops` and `size_at_most_flops` are factors on N) and the exponent (a difference).

    Raises:
        FitError: the law has no optimum, or the exact curves no minimum inside the sizes.
    """
    exact = Points(
        points.params,
        points.tokens,
        fit.predict(points.params, points.tokens),
        points.flops,
        points.weight,
        points.names,
        points.conventions,
    )
    how = {"interpolate": frontier.interpolate, "window": frontier.window}
    found, ends = fit_isoflop(exact, bootstrap=0, **how), [float(frontier.flops.min()), float(frontier.flops.max())]
    first, last = (a.N / b.N for a, b in zip(compute_optimal(found, ends), compute_optimal(fit, ends), strict=True))
    exponent = np.log(last / first) / np.log(ends[1] / ends[0])
    return {"N_exponent": float(exponent), "size_at_least_flops": first, "size_at_most_flops": last}
