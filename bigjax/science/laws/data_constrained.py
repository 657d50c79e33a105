"""The loss of runs that repeat their data (Muennighoff et al. 2023)."""

from dataclasses import dataclass, field

import numpy as np

from bigjax.science.laws.adequacy import doubts
from bigjax.science.laws.formula.law import Law
from bigjax.science.laws.parametric import NAMES, ParametricFit, fit_parametric
from bigjax.science.laws.robust import (
    CONVERGED,
    FitError,
    LogModel,
    bootstrap_weights,
    check_points,
    clusters,
    interval,
    minimise,
    minimise_many,
    spread,
)

START_GRID = [np.log([r_d, r_n]) for r_d in (1.0, 5.0, 15.0, 50.0) for r_n in (1.0, 5.0, 15.0, 50.0)]


@dataclass(frozen=True)
class DataConstrainedFit:
    """`L = E + A / N'^alpha + B / D'^beta` with the effective parameters N' and tokens D' of repeated data.

    Attributes:
        base: the law of data that is not repeated.
        R_D_star, R_N_star: repetitions, and excess of parameters, after which what one more brings is 1/e.
        replicates: `(r, 2)` values of log R_D_star, log R_N_star.
    """

    base: ParametricFit | Law
    R_D_star: float
    R_N_star: float
    objective: float
    n_points: int
    converged: bool
    warnings: tuple[str, ...]
    replicates: np.ndarray = field(repr=False)

    @property
    def parameters(self) -> dict[str, float]:
        return {"R_D_star": self.R_D_star, "R_N_star": self.R_N_star}

    @property
    def ci95(self) -> dict[str, list[float] | None]:
        with np.errstate(over="ignore"):
            ends = map(interval, np.exp(self.replicates).T)
        return dict(zip(("R_D_star", "R_N_star"), ends, strict=True))

    def predict(self, params: np.ndarray, tokens: np.ndarray, unique_tokens: np.ndarray) -> np.ndarray:
        """Return the loss `(n,)` of models of `params` trained on `tokens`, `unique_tokens` of them distinct."""
        model = _log_model(_theta(self.base), params, tokens, unique_tokens)
        return np.exp(model(np.log([self.R_D_star, self.R_N_star]))[0])


def fit_data_constrained(
    params: np.ndarray,
    tokens: np.ndarray,
    unique_tokens: np.ndarray,
    loss: np.ndarray,
    *,
    base: ParametricFit | Law | None = None,
    delta: float = 1e-3,
    bootstrap: int = 400,
    seed: int = 0,
) -> DataConstrainedFit:
    """Fit R*_D and R*_N of equations 5 and 6 of Muennighoff et al. 2023, given the law of data seen once.

    `D' = U_D + U_D R*_D (1 - exp(-R_D / R*_D))` with R_D = D / U_D - 1 repetitions of U_D unique tokens, and N'
    likewise of U_N = min(N, what is compute-optimal for U_D tokens). All runs count, as in the paper: one that repeats
    nothing but is larger than its tokens deserve tells of R*_N. Without `base`, runs that repeat nothing are
    fitted first; the intervals take `base` as known, as the paper does.

    Args:
        params: `(n,)`, as tokens, unique_tokens and loss are. Unique tokens above tokens mean that nothing is repeated.

    Raises:
        FitError: too few runs, none that repeats data, or values that are not finite and positive.
    """
    columns = {"params": params, "tokens": tokens, "unique_tokens": unique_tokens, "loss": loss}
    params, tokens, unique, loss = columns = [np.asarray(column, float) for column in columns.values()]
    names = ("params", "tokens", "unique_tokens", "loss")
    check_points(dict(zip(names, columns, strict=True)), 2, "the data-constrained law")
    unique = np.minimum(unique, tokens)
    repeats = tokens > unique
    if base is None:
        base = _base(params[~repeats], tokens[~repeats], loss[~repeats], delta)
    theta = _theta(base)
    if repeats.sum() < 2:
        raise FitError(f"the data-constrained law needs at least 2 runs that repeat data, not {repeats.sum()}")
    model, log_value, weights = _log_model(theta, params, tokens, unique), np.log(loss), np.ones(len(loss))
    best = minimise(model, log_value, weights, START_GRID, delta)
    cluster = clusters(params, tokens, unique)
    drawn = bootstrap_weights(cluster, bootstrap, seed)
    raw, gradients = minimise_many(model, log_value, drawn, np.tile(best.theta, (bootstrap, 1)), delta)
    prediction, jacobian = model(best.theta)
    warnings = list(doubts(log_value, log_value - prediction, weights, 2))
    if np.abs(jacobian[:, 1]).max() < 1e-6:
        warnings.append("no run has more parameters than its unique tokens deserve: R_N_star is not determined")
    if np.abs(jacobian[:, 0]).max() < 1e-6:
        warnings.append("the repetitions are too few to see them lose value: R_D_star is not determined")
    return DataConstrainedFit(
        base=base,
        R_D_star=float(np.exp(best.theta[0])),
        R_N_star=float(np.exp(best.theta[1])),
        objective=best.objective,
        n_points=len(loss),
        converged=best.converged and (not bootstrap or float(np.mean(gradients <= CONVERGED)) >= 0.95),
        warnings=tuple(warnings),
        replicates=spread(best.theta, raw, int(cluster.max()) + 1, 2),
    )


def _base(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, delta: float) -> ParametricFit:
    """Return the law of the runs that repeat nothing."""
    try:
        return fit_parametric(params, tokens, loss, delta=delta, bootstrap=0)
    except FitError as error:
        reason = f"the {len(loss)} runs that repeat nothing do not give one: {error}"
        raise FitError(f"the data-constrained law needs a law of data seen once, and {reason}") from error


def _theta(base: ParametricFit | Law) -> np.ndarray:
    """Return log E, log A, log B, alpha, beta.

    Raises:
        FitError: the law has no such constants, or one is not above 0.
    """
    if not set(NAMES) <= set(base.parameters):
        raise FitError(f"the law of data seen once needs {', '.join(NAMES)}, and has {', '.join(base.parameters)}")
    values = [base.parameters[name] for name in NAMES]
    if min(values) <= 0:
        raise FitError("the data-constrained law needs a law of data seen once whose constants are above 0")
    return np.array([*np.log(values[:3]), *values[3:]])


def _log_model(base: np.ndarray, params: np.ndarray, tokens: np.ndarray, unique: np.ndarray) -> LogModel:
    """Return the model of `theta = (log R*_D, log R*_N)`."""
    _, a, b, alpha, beta = base
    unique = np.minimum(unique, tokens)
    # alpha A / N^alpha = beta B / D^beta, which holds at the compute-optimal N of D tokens, with D = U_D.
    best = np.exp((np.log(alpha / beta) + a - b + beta * np.log(unique)) / alpha)
    unique_params = np.minimum(best, params)

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_d, slope_d = _effective(theta[..., :1], tokens, unique)
        log_n, slope_n = _effective(theta[..., 1:], params, unique_params)
        terms = np.stack(np.broadcast_arrays(base[0], a - alpha * log_n, b - beta * log_d))
        total = np.logaddexp.reduce(terms, axis=0)
        shares = np.exp(terms - total)
        return total, np.stack([-beta * shares[2] * slope_d, -alpha * shares[1] * slope_n], axis=-1)

    return model


def _effective(log_star: np.ndarray, seen: np.ndarray, unique: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log of what `seen` is worth, `U + U R* (1 - exp(-R / R*))`, and its derivative in log R*."""
    star, repeated = np.exp(np.clip(log_star, -20, 20)), seen / unique - 1
    gained = -star * np.expm1(-repeated / star)
    worth = 1 + gained
    return np.log(unique * worth), (gained - repeated * np.exp(-repeated / star)) / worth
