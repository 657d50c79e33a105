"""Power laws of one quantity in another, with and without a term that never goes away."""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from bigjax.science.laws import adequacy
from bigjax.science.laws.robust import (
    CONVERGED,
    SEEN_SHARE,
    FitError,
    LogModel,
    bootstrap_weights,
    check_points,
    clusters,
    interval,
    lifted,
    minimise_irreducible,
    minimise_many,
    spread_irreducible,
)


@dataclass(frozen=True)
class PowerLawFit:
    """`y = coefficient * x^exponent + irreducible`; `ci95` by name; `objective` as the method defines it.

    `warnings` say what is doubtful: a fit that has `converged` may still explain nothing. `replicates` `(r, 3)` hold
    log irreducible, the log of the rest where log x is `centre`, and the exponent.
    """

    coefficient: float
    exponent: float
    irreducible: float
    ci95: dict[str, list[float] | None]
    objective: float
    n_points: int
    converged: bool
    replicates: np.ndarray = field(repr=False)
    warnings: tuple[str, ...] = ()
    centre: float = 0.0

    @property
    def plain(self) -> np.ndarray:
        """The replicates as `(r, 3)` values of coefficient, exponent and irreducible."""
        if not len(self.replicates):
            return np.empty((0, 3))
        constant, level, slope = self.replicates.T
        with np.errstate(over="ignore"):
            return np.stack([np.exp(level - slope * self.centre), slope, np.exp(constant)], axis=1)

    @property
    def parameters(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("coefficient", "exponent", "irreducible")}

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return y at `x`."""
        return self.coefficient * np.asarray(x, float) ** self.exponent + self.irreducible


def fit_power_law(
    x: np.ndarray,
    y: np.ndarray,
    *,
    irreducible: bool = False,
    weight: np.ndarray | None = None,
    delta: float = 1e-3,
    bootstrap: int = 400,
    seed: int = 0,
) -> PowerLawFit:
    """Fit a power law to points `(n,)`.

    Without `irreducible`: least squares in logarithms with t-intervals, `objective` being the sum of squares. With it:
    Huber loss of log y as in `fit_parametric`, with bootstrap intervals.

    Raises:
        FitError: too few points, or values that are not finite and positive.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    parameters = 3 if irreducible else 2
    check_points({"x": x, "y": y}, parameters, "the power law" + (" with an irreducible term" if irreducible else ""))
    weights = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    if irreducible:
        return _fit_irreducible(x, y, weights, delta, bootstrap, seed)
    return _fit_line(np.log(x), np.log(y), weights)


def _fit_line(log_x: np.ndarray, log_y: np.ndarray, weights: np.ndarray) -> PowerLawFit:
    design = np.stack([np.ones_like(log_x), log_x], axis=1)
    information = design.T @ (weights[:, None] * design)
    constant, slope = theta = np.linalg.solve(information, design.T @ (weights * log_y))
    residuals = log_y - design @ theta
    squares, freedom = float(weights @ residuals**2), len(log_y) - 2
    ci95: dict[str, list[float] | None] = {"coefficient": None, "exponent": None}
    if freedom > 0:
        half = stats.t.ppf(0.975, freedom) * np.sqrt(np.diag(np.linalg.inv(information)) * squares / freedom)
        ci95 = {
            "coefficient": [float(end) for end in np.exp(constant + half[0] * np.array([-1, 1]))],
            "exponent": [float(end) for end in slope + half[1] * np.array([-1, 1])],
        }
    warnings = (
        *adequacy.doubts(log_y, residuals, weights, 2),
        *adequacy.better_curve(np.exp(log_x), np.exp(log_y), residuals, weights, irreducible=False),
    )
    exact = float(np.exp(constant)), float(slope), 0.0
    return PowerLawFit(*exact, ci95, squares, len(log_y), True, np.empty((0, 2)), warnings)


def _fit_irreducible(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, delta: float, bootstrap: int, seed: int
) -> PowerLawFit:
    log_x, log_y = np.log(x), np.log(y)
    centre = log_x.mean()
    model, rising = _log_model(log_x - centre), np.sign(np.polyfit(log_x, log_y, 1)[0]) or -1.0
    starts = [
        np.array([np.log(share * y.min()), np.log(max(np.median(y) - share * y.min(), 1e-3 * y.min())), rising * power])
        for share in (0.1, 0.5, 0.8, 0.95)
        for power in (0.1, 0.3, 0.6, 1.0)
    ]
    best = minimise_irreducible(model, log_y, weights, starts, delta)
    if best.theta[2] == 0:
        raise FitError("the power law is flat: y does not change with x")
    cluster = clusters(x)
    drawn = weights * bootstrap_weights(cluster, bootstrap, seed)
    start_of_each = np.tile(lifted(best.theta, log_y, SEEN_SHARE), (bootstrap, 1))
    raw, gradients = minimise_many(model, log_y, drawn, start_of_each, delta)
    replicates = spread_irreducible(best.theta, raw, int(cluster.max()) + 1, 3, log_y)
    constant, level, slope = map(float, best.theta)
    residuals = log_y - model(best.theta)[0]
    found = PowerLawFit(
        coefficient=float(np.exp(level - slope * centre)),
        exponent=slope,
        irreducible=float(np.exp(constant)),
        ci95={},
        objective=best.objective,
        n_points=len(y),
        converged=best.converged and bool(np.mean(gradients <= CONVERGED) >= 0.95 if bootstrap else True),
        replicates=replicates,
        warnings=(
            *adequacy.doubts(log_y, residuals, weights, 3),
            *adequacy.better_curve(x, y, residuals, weights, irreducible=True),
        ),
        centre=float(centre),
    )
    return replace(
        found, ci95={name: interval(values) for name, values in zip(found.parameters, found.plain.T, strict=True)}
    )


def _log_model(log_x: np.ndarray) -> LogModel:
    """Return the model of `theta = (log irreducible, log level, exponent)`."""

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        constant, level, slope = np.moveaxis(theta[..., None], -2, 0)
        terms = np.stack(np.broadcast_arrays(constant, level + slope * log_x))
        total = np.logaddexp(*terms)
        shares = np.exp(terms - total)
        return total, np.stack([*shares, shares[1] * log_x], axis=-1)

    return model
