"""Robust fits of a model to the logarithms of positive values, and how uncertain they are.

Everything works on float64 arrays; `theta` are the free parameters of a model, whose logarithm and Jacobian are
`model(theta) -> (log_prediction (n,), jacobian (n, p))`; leading axes of theta, as of `(replicates, p)`, lead both.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from bigjax.errors import UserError

LogModel = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

CONVERGED = 1e-3
"""The largest gradient per unit of weight, in multiples of delta, at which a fit counts as converged.

The Huber loss has slopes of up to one delta a point: at the optimum, slopes that large cancel to a thousandth.
"""

LEAST_SHARE, SEEN_SHARE = 1e-9, 1e-2
"""An irreducible term below the first, as a share of the least value, is none; from the second on its slope is seen."""


class FitError(UserError, ValueError):
    """A law cannot be fitted to these points; the message is one sentence that says why."""


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended: `objective` is the weighted sum of Huber losses, `gradient` as in `CONVERGED`."""

    theta: np.ndarray
    objective: float
    gradient: float

    @property
    def converged(self) -> bool:
        return bool(np.isfinite(self.objective)) and self.gradient <= CONVERGED


def huber(residuals: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the Huber loss of each residual and its derivative (Huber 1964): r²/2 within delta, linear beyond."""
    slope = np.clip(residuals, -delta, delta)
    return slope * (residuals - 0.5 * slope), slope


def objective(
    theta: np.ndarray, model: LogModel, log_value: np.ndarray, weight: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    """Return the weighted sum of Huber losses of `log prediction - log value` and its gradient `(p,)`."""
    prediction, jacobian = model(theta)
    losses, slopes = huber(prediction - log_value, delta)
    return float(weight @ losses), (weight * slopes) @ jacobian


def minimise(
    model: LogModel, log_value: np.ndarray, weight: np.ndarray, starts: Iterable[np.ndarray], delta: float
) -> Minimum:
    """Return the best optimum that L-BFGS reaches from `starts`.

    The objective is divided by delta and by the sum of the weights: left as small as it is, L-BFGS stops far from the
    optimum, which is what happened to the published fit (Besiroglu et al. 2024, section 4).
    """
    scale = delta * weight.sum()

    def scaled(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(theta, model, log_value, weight, delta)
        return value / scale, gradient / scale

    best = None
    for start in starts:
        # Far from the optimum exponentials overflow; the line search steps back from what is infinite.
        with np.errstate(over="ignore", invalid="ignore"):
            found = optimize.minimize(
                scaled,
                start,
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": 3000, "maxfun": 6000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20},
            )
        if best is None or found.fun < best.fun:
            best = found
    if best is None:
        raise FitError("a fit needs at least one start")
    return Minimum(best.x, float(best.fun * scale), float(np.abs(best.jac).max()))


def minimise_many(
    model: LogModel, log_value: np.ndarray, weights: np.ndarray, starts: np.ndarray, delta: float, iterations: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row of `weights` `(r, n)` the optimum `(r, p)` near `starts` `(r, p)`, and its gradient `(r,)`.

    All rows together take damped Gauss-Newton steps on squares reweighted to the Huber loss (Holland & Welsch 1977),
    each with a damping of its own (Marquardt 1963): a hundred times faster than L-BFGS row by row.
    """
    scale = delta * weights.sum(axis=1)
    theta, damping, active = starts.astype(float), np.full(len(weights), 1e-3), np.arange(len(weights))
    value, gradient, hessian = _quadratic(model, theta, log_value, weights, delta, scale)
    for _ in range(iterations):
        if not len(active):
            break
        diagonal = np.einsum("rpp->rp", hessian[active]) + 1e-12
        damped = hessian[active] + (damping[active, None] * diagonal)[:, :, None] * np.eye(theta.shape[1])
        step = -np.linalg.solve(damped, gradient[active][:, :, None])[:, :, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            tried = _quadratic(model, theta[active] + step, log_value, weights[active], delta, scale[active])
        better = tried[0] < value[active]
        accepted = active[better]
        gain = value[accepted] - tried[0][better]
        theta[accepted] += step[better]
        value[accepted], gradient[accepted], hessian[accepted] = (part[better] for part in tried)
        damping[accepted] = np.maximum(damping[accepted] / 4, 1e-9)
        damping[active[~better]] *= 8
        settled = np.zeros(len(weights), bool)
        settled[accepted] = gain < 1e-10 * value[accepted]
        active = active[~settled[active] & (damping[active] < 1e9)]
    return theta, np.abs(gradient).max(axis=1)


def _quadratic(model, theta, log_value, weights, delta, scale):
    """Return objective `(r,)`, gradient `(r, p)` and Hessian `(r, p, p)` of the reweighted squares, over `scale`."""
    prediction, jacobian = model(theta)
    residuals = prediction - log_value
    losses, slopes = huber(residuals, delta)
    weights = weights / scale[:, None]
    pull = weights * delta / np.maximum(np.abs(residuals), delta)
    gradient = np.einsum("rn,rnp->rp", weights * slopes, jacobian)
    hessian = np.swapaxes(jacobian * pull[:, :, None], 1, 2) @ jacobian
    return np.einsum("rn,rn->r", weights, losses), gradient, hessian


def clusters(*columns: np.ndarray) -> np.ndarray:
    """Return for each point the index `(n,)` of its cluster: seeds of one setting agree in all `columns`."""
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def bootstrap_weights(cluster: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Return `(replicates, n)` random weights of mean 1, the same for all points of a cluster.

    They are uniform Dirichlet weights (Rubin 1981; Xu et al. 2020, fractional-random-weight bootstrap): other than
    with resampled points, no replicate loses so many that its fit is not determined.
    """
    count = int(cluster.max()) + 1
    drawn = np.random.default_rng(seed).exponential(size=(replicates, count))
    weights = drawn / drawn.mean(axis=1, keepdims=True)
    return weights[:, cluster]


def widened(estimate: np.ndarray, replicates: np.ndarray, freedom: float) -> np.ndarray:
    """Return `replicates` moved away from `estimate` by t(0.975) / z(0.975) for noise known by `freedom` degrees.

    Below one degree nothing is known about the noise: all replicates become NaN.
    """
    if freedom < 1:
        return np.full_like(replicates, np.nan)
    return estimate + stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975) * (replicates - estimate)


def spread(estimate: np.ndarray, replicates: np.ndarray, num_clusters: int, num_parameters: int) -> np.ndarray:
    """Return `replicates` moved away from `estimate`, so that their 95 % percentiles allow for few points.

    The factor is `t(0.975, m - p) / z(0.975) * sqrt(m / (m - p))` for m clusters and p parameters, the correction of
    percentile intervals for small samples (Hesterberg 2015, section 3.2, with p in place of 1).
    """
    freedom = num_clusters - num_parameters
    root = np.sqrt(num_clusters / max(freedom, 1))  # replicates vary by so much less than the noise does
    return widened(estimate, estimate + root * (replicates - estimate), freedom)


def lifted(theta: np.ndarray, log_value: np.ndarray, share: float) -> np.ndarray:
    """Return `theta` `(..., p)`, whose first entry is the log of an irreducible term, with that at least a share.

    The term is positive or zero, but its logarithm has no end: once it has fallen far no slope leads back, so that
    neither a search nor a bootstrap replicate may start from there.
    """
    raised = theta.copy()
    raised[..., 0] = np.maximum(raised[..., 0], log_value.min() + np.log(share))
    return raised


def spread_irreducible(
    estimate: np.ndarray, replicates: np.ndarray, num_clusters: int, num_parameters: int, log_value: np.ndarray
) -> np.ndarray:
    """Return `spread` of thetas as in `lifted`, where the term moves as such and not its logarithm, but not below 0."""

    def plain(theta: np.ndarray) -> np.ndarray:
        return np.concatenate([np.exp(theta[..., :1]), theta[..., 1:]], axis=-1)

    moved = spread(plain(estimate), plain(replicates), num_clusters, num_parameters)
    moved[:, 0] = np.log(np.maximum(moved[:, 0], LEAST_SHARE * np.exp(log_value.min())))
    return moved


def minimise_irreducible(
    model: LogModel, log_value: np.ndarray, weight: np.ndarray, starts: Iterable[np.ndarray], delta: float
) -> Minimum:
    """Return what `minimise` finds for thetas as in `lifted`, tried again where the term seems to be none."""
    best = minimise(model, log_value, weight, starts, delta)
    if best.theta[0] < lifted(best.theta, log_value, SEEN_SHARE)[0]:
        again = minimise(model, log_value, weight, [lifted(best.theta, log_value, SEEN_SHARE)], delta)
        best = min(best, again, key=lambda found: found.objective)
    return replace(best, theta=lifted(best.theta, log_value, LEAST_SHARE))


def interval(values: np.ndarray, least: float = -np.inf) -> list[float] | None:
    """Return the 95 % percentile interval of `values` `(replicates,)`, none of which can be below `least`.

    A NaN may lie on either side: with too many of them, and with infinities, an end is `least` or infinite, which says
    that the points do not bound the value there. It is None with fewer than 20 values, or where nothing is known.
    """
    unknown = np.isnan(values)
    if len(values) < 20 or unknown.all():
        return None
    sides = ((0.025, least), (0.975, np.inf))
    # No interpolation, which infinities turn into NaN.
    return [float(np.quantile(np.where(unknown, end, values), q, method="inverted_cdf")) for q, end in sides]


def check_points(columns: dict[str, np.ndarray], num_parameters: int, what: str) -> None:
    """Raise FitError unless the columns are finite, positive, of one length, and enough for `num_parameters`."""
    lengths = {name: np.shape(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1 or len(next(iter(lengths.values()))) != 1:
        shapes = ", ".join(f"{name} {shape}" for name, shape in lengths.items())
        raise FitError(f"{what} needs one-dimensional arrays of one length, not {shapes}")
    for name, values in columns.items():
        if bad := int((~(np.isfinite(values) & (values > 0))).sum()):
            raise FitError(f"{what} needs finite positive values, but {bad} of {len(values)} in {name} are not")
    distinct = len(np.unique(np.stack(list(columns.values())[:-1], 1), axis=0))
    if distinct < num_parameters:
        settings = "1 distinct point is" if distinct == 1 else f"{distinct} distinct points are"
        raise FitError(f"{settings} too few for {what}, which has {num_parameters} parameters")
