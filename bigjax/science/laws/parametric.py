"""The loss as a function of parameters and tokens: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022)."""

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from bigjax.science.laws.adequacy import doubts
from bigjax.science.laws.points import Conventions, FlopModel
from bigjax.science.laws.robust import (
    CONVERGED,
    LEAST_SHARE,
    SEEN_SHARE,
    FitError,
    LogModel,
    Minimum,
    bootstrap_weights,
    check_points,
    clusters,
    interval,
    lifted,
    minimise_irreducible,
    minimise_many,
    objective,
    spread_irreducible,
)

NAMES = ("E", "A", "B", "alpha", "beta")

START_GRID = {
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""The 4,500 starts of Hoffmann et al. 2022, appendix D.2."""

NUM_STARTS = 24
"""How many of them are followed, those with the smallest error: roughly, all together, by `minimise_many`."""

NUM_POLISHED = 2
"""How many of these, the best, L-BFGS then follows to the end."""


@dataclass(frozen=True)
class ParametricFit:
    """A fitted law, with bootstrap replicates of its parameters.

    Attributes:
        E: loss in nats per token that no size and no data remove; A, alpha: the share of a finite size; B, beta: that
            of finite data.
        replicates: `(replicates, 5)` values of e = log E, a = log A, b = log B, alpha, beta, spread for few points.
        objective: sum of Huber losses of `log L_fit - log L`, weighted.
        residuals: `(n,)` log L - log L_fit; jacobian: `(n, 5)` of log L_fit in `theta`.
        converged: whether the gradient vanishes; replicates_converged: the share of replicates where it does.
        warnings: what a reader should know before trusting the fit.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    delta: float
    objective: float
    n_points: int
    n_clusters: int
    converged: bool
    replicates_converged: float | None
    warnings: tuple[str, ...]
    conventions: Conventions
    flop_model: FlopModel
    replicates: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)
    jacobian: np.ndarray = field(repr=False)

    @property
    def theta(self) -> np.ndarray:
        """e, a, b, alpha, beta `(5,)`."""
        return np.array([np.log(self.E), np.log(self.A), np.log(self.B), self.alpha, self.beta])

    @property
    def parameters(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in NAMES}

    @property
    def ci95(self) -> dict[str, list[float] | None]:
        """The 95 % interval of each parameter."""
        with np.errstate(over="ignore"):
            values = np.concatenate([np.exp(self.replicates[:, :3]), self.replicates[:, 3:]], axis=1)
        return {name: interval(column) for name, column in zip(NAMES, values.T, strict=True)}

    def predict(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the loss of models of `params` parameters `(n,)` trained on `tokens` tokens `(n,)`."""
        return np.exp(log_loss_model(np.log(params), np.log(tokens))(self.theta)[0])

    def predict_interval(self, params: np.ndarray, tokens: np.ndarray, seed: int = 0) -> np.ndarray:
        """Return `(2, n)` ends of the 95 % interval of the loss of a new run, its own noise included."""
        model, rng = log_loss_model(np.log(params), np.log(tokens)), np.random.default_rng(seed)
        noise = self.residuals * np.sqrt(len(self.residuals) / max(len(self.residuals) - len(NAMES), 1))
        with np.errstate(over="ignore"):
            drawn = np.stack([model(theta)[0] for theta in self.replicates])
        ends = np.array([interval(column) or [np.nan, np.nan] for column in (drawn + rng.choice(noise, drawn.shape)).T])
        return np.exp(ends.T)


def log_loss_model(log_params: np.ndarray, log_tokens: np.ndarray) -> LogModel:
    """Return the model of `theta = (e, a, b, alpha, beta)` with `log L = LSE(a - alpha n, b - beta d, e)`.

    This is equation 10 of Hoffmann et al. 2022, appendix D.2, with E = exp(e), A = exp(a), B = exp(b).
    """

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e, a, b, alpha, beta = np.moveaxis(theta[..., None], -2, 0)
        terms = np.stack(np.broadcast_arrays(e, a - alpha * log_params, b - beta * log_tokens))
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        shares /= total
        jacobian = np.stack([*shares, -shares[1] * log_params, -shares[2] * log_tokens], axis=-1)
        return top + np.log(total), jacobian

    return model


def fit_parametric(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    delta: float = 1e-3,
    bootstrap: int = 400,
    seed: int = 0,
    start: ParametricFit | None = None,
    conventions: Conventions | None = None,
    flop_model: FlopModel | None = None,
) -> ParametricFit:
    """Fit E, A, B, alpha and beta to runs by the Huber loss on log values (Hoffmann et al. 2022, appendix D.2).

    L-BFGS starts where the best of `START_GRID` lead, or from `start` if that is given (a fit of nearly these points).
    Runs with the same parameters and tokens, i.e. seeds, are drawn together in the bootstrap.

    Args:
        params: `(n,)`; tokens: `(n,)`; loss: `(n,)`, in nats per token.
        weight: `(n,)` weights in the objective, 1 by default.
        delta: where the Huber loss becomes linear, in log loss.
        bootstrap: number of replicates, 0 for none.
        conventions: what params, tokens and FLOPs count, kept with the fit; flop_model: how FLOPs follow from them, by
            default `6ND` as `conventions` say.

    Raises:
        FitError: too few points, values that are not finite and positive, or points that lead to no finite law.
    """
    params, tokens, loss = (np.asarray(column, float) for column in (params, tokens, loss))
    check_points({"params": params, "tokens": tokens, "loss": loss}, len(NAMES), "the parametric law")
    _check_variety(params, tokens)
    if not delta > 0:
        raise FitError(f"delta={delta} must be above 0")
    weights = np.ones(len(loss)) if weight is None else np.asarray(weight, float)
    log_value, centre = np.log(loss), np.array([np.log(params).mean(), np.log(tokens).mean()])
    # Centred logarithms make a and alpha, b and beta nearly independent, and L-BFGS an order of magnitude faster.
    model = log_loss_model(np.log(params) - centre[0], np.log(tokens) - centre[1])
    starts = [_centred(start.theta, centre)] if start else _best_starts(model, log_value, weights, delta, centre)
    best = minimise_irreducible(model, log_value, weights, starts, delta)
    conventions = conventions or Conventions()
    cluster = clusters(params, tokens)
    count = int(cluster.max()) + 1
    drawn = weights * bootstrap_weights(cluster, bootstrap, seed)
    start_of_each = np.tile(lifted(best.theta, log_value, SEEN_SHARE), (bootstrap, 1))
    replicates, gradients = minimise_many(model, log_value, drawn, start_of_each, delta)
    prediction, jacobian = model(best.theta)
    theta = _uncentred(best.theta, centre)
    if not np.isfinite(list(named(theta).values())).all():
        raise FitError(
            "the points do not determine the parametric law: its exponents ran away to "
            f"{theta[3]:.3g} and {theta[4]:.3g}"
        )
    reached = float(np.mean(gradients <= CONVERGED)) if bootstrap else None
    moved = spread_irreducible(best.theta, replicates, count, len(NAMES), log_value)
    return ParametricFit(
        **named(theta),
        delta=delta,
        objective=best.objective,
        n_points=len(loss),
        n_clusters=count,
        converged=best.converged,
        replicates_converged=reached,
        warnings=(
            *_warnings(best, jacobian, moved, count, reached, log_value),
            *doubts(log_value, log_value - prediction, weights, len(NAMES)),
        ),
        conventions=conventions,
        flop_model=flop_model or FlopModel(conventions.flops_per_param_token),
        replicates=_uncentred(moved, centre),
        residuals=log_value - prediction,
        jacobian=log_loss_model(np.log(params), np.log(tokens))(theta)[1],
    )


def refit(
    fit: ParametricFit, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, weights: np.ndarray, delta: float
) -> np.ndarray:
    """Return theta `(r, 5)` of fits to the points `(n,)` with each row of weights `(r, n)`, started from `fit`."""
    centre = np.array([np.log(params).mean(), np.log(tokens).mean()])
    model = log_loss_model(np.log(params) - centre[0], np.log(tokens) - centre[1])
    log_value = np.log(loss)
    starts = np.tile(lifted(_centred(fit.theta, centre), log_value, SEEN_SHARE), (len(weights), 1))
    found, _ = minimise_many(model, log_value, weights, starts, delta)
    return _uncentred(lifted(found, log_value, LEAST_SHARE), centre)


def named(theta: np.ndarray) -> dict[str, float]:
    """Return E, A, B, alpha and beta of theta `(5,)`; a coefficient that no number can hold is infinite."""
    with np.errstate(over="ignore"):
        return dict(zip(NAMES, map(float, [*np.exp(theta[:3]), *theta[3:]]), strict=True))


def _check_variety(params: np.ndarray, tokens: np.ndarray) -> None:
    for name, values in (("sizes", params), ("token counts", tokens)):
        if len(np.unique(values)) < 3:
            raise FitError(
                f"the parametric law needs at least 3 {name} to tell its exponent from its coefficient, "
                f"not {len(np.unique(values))}"
            )


def _centred(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    e, a, b, alpha, beta = theta
    return np.array([e, a - alpha * centre[0], b - beta * centre[1], alpha, beta])


def _uncentred(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return theta `(..., 5)` of the model of plain logarithms."""
    plain = theta.copy()
    plain[..., 1:3] += theta[..., 3:5] * centre
    return plain


def _best_starts(
    model: LogModel, log_value: np.ndarray, weights: np.ndarray, delta: float, centre: np.ndarray
) -> list[np.ndarray]:
    """Return where the most promising points of `START_GRID` lead, the best first."""
    e, a, b, alpha, beta = (np.array(column) for column in zip(*product(*START_GRID.values()), strict=True))
    grid = np.stack([e, a - alpha * centre[0], b - beta * centre[1], alpha, beta], axis=1)
    values = [weights @ np.abs(model(theta)[0] - log_value) for theta in grid]
    followed = grid[np.argsort(values, kind="stable")[:NUM_STARTS]]
    rough, _ = minimise_many(model, log_value, np.tile(weights, (NUM_STARTS, 1)), followed, delta, iterations=60)
    reached = [objective(theta, model, log_value, weights, delta)[0] for theta in rough]
    return list(rough[np.argsort(reached, kind="stable")[:NUM_POLISHED]])


def _warnings(
    best: Minimum, jacobian: np.ndarray, moved: np.ndarray, count: int, reached: float | None, log_value: np.ndarray
):
    """Yield what is doubtful about a fit."""
    _, _, _, alpha, beta = best.theta
    if not best.converged:
        yield f"L-BFGS did not converge: the gradient is {best.gradient:.1e} delta a point"
    if reached is not None and reached < 0.95:
        yield f"{1 - reached:.0%} of the bootstrap replicates did not converge"
    if alpha <= 0 or beta <= 0:
        yield "an exponent is not positive: the points do not show that the loss falls with size and with data"
    elif (share := np.count_nonzero(moved[:, 3:].min(axis=1) <= 0) / max(len(moved), 1)) > 0.01:
        yield (
            f"{share:.0%} of the bootstrap replicates have an exponent that is not positive, so that the "
            "compute-optimal size may be any: where that is more than 2.5 %, its interval has no ends"
        )
    if best.theta[0] < lifted(best.theta, log_value, 1e-6)[0]:
        yield "E is 0: the losses do not show that any of them is irreducible"
    if count <= len(NAMES):
        yield f"{count} distinct points for {len(NAMES)} parameters: no degree of freedom is left for an interval"
    lengths = np.linalg.norm(jacobian, axis=0)
    if not lengths.all() or np.linalg.cond(jacobian / lengths) > 1e4:
        yield "the points hardly determine the parameters: some combination of them is free"
