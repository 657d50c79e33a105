"""How many parameters and tokens make the most of a compute budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.parametric import ParametricFit, log_loss_model
from bigjax.science.laws.points import FlopModel
from bigjax.science.laws.robust import FitError, interval


@dataclass(frozen=True)
class Optimum:
    """The best use of `C` FLOPs: N parameters, D tokens, the loss if the law says one; `ci95` by these names."""

    C: float
    N: float
    D: float
    tokens_per_parameter: float
    loss: float | None
    ci95: dict[str, list[float] | None]


def compute_optimal(fit: ParametricFit | FrontierFit, flops: float | Sequence[float] | np.ndarray) -> list[Optimum]:
    """Return the compute-optimal sizes and tokens at each of `flops`, with 95 % intervals.

    For the parametric law they minimise L(N, D) where C = k N^s D (`fit.flop_model`); with s = 1 and k = 6 that is
    N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta)) (Hoffmann et al. 2022, eq. 4).

    Raises:
        FitError: a budget that is not above 0, or a law without an optimum since an exponent is not positive.
    """
    budgets = _positive(flops)
    log_flops = np.log(budgets)
    if isinstance(fit, FrontierFit):
        best, drawn = _frontier(fit, fit.theta, log_flops), _frontier(fit, fit.replicates, log_flops)
        return _rows(budgets, best, drawn, None, None)
    if min(fit.alpha, fit.beta) <= 0:
        raise FitError(
            f"the law has no compute-optimal size: alpha={fit.alpha:.3g} and beta={fit.beta:.3g} must both be above 0"
        )
    best = optimal_logs(fit.theta, log_flops, fit.flop_model)
    drawn = optimal_logs(fit.replicates, log_flops, fit.flop_model)
    losses = [
        np.stack([log_loss_model(n, d)(theta)[0] for theta, n, d in zip(*sets, strict=True)])
        if len(sets[0])
        else np.empty((0, len(log_flops)))
        for sets in ((fit.theta[None], *(part[None] for part in best)), (fit.replicates, *drawn))
    ]
    return _rows(budgets, best, drawn, losses[0][0], losses[1])


def optimal_logs(theta: np.ndarray, log_flops: np.ndarray, model: FlopModel) -> tuple[np.ndarray, np.ndarray]:
    """Return log N and log D `(..., m)` of the parametric optimum; NaN where an exponent is not positive."""
    _, a, b, alpha, beta = np.moveaxis(theta[..., None], -2, 0)
    exists = (alpha > 0) & (beta > 0)
    alpha, beta = np.where(exists, alpha, np.nan), np.where(exists, beta, np.nan)
    work, s = log_flops - np.log(model.coefficient), model.size_exponent
    log_n = (beta * work + a - b + np.log(alpha / (s * beta))) / (alpha + s * beta)
    return log_n, work - s * log_n


def _positive(flops) -> np.ndarray:
    values = np.atleast_1d(np.asarray(flops, float))
    if not (np.isfinite(values) & (values > 0)).all():
        raise FitError(f"compute budgets must be above 0 FLOPs, not {values.min():g}")
    return values


def _frontier(fit: FrontierFit, theta: np.ndarray, log_flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, a, d, b = np.moveaxis(theta[..., None], -2, 0)
    return n + a * (log_flops - fit.centre), d + b * (log_flops - fit.centre)


def _rows(flops, best, drawn, log_loss, drawn_loss) -> list[Optimum]:
    found = []
    with np.errstate(over="ignore"):
        for i, work in enumerate(flops):
            n, d = best[0][i], best[1][i]
            columns = {"N": drawn[0], "D": drawn[1], "tokens_per_parameter": drawn[1] - drawn[0]}
            if drawn_loss is not None:
                columns["loss"] = drawn_loss
            ci95 = {name: interval(np.exp(values[:, i]), least=0.0) for name, values in columns.items()}
            loss = None if log_loss is None else float(np.exp(log_loss[i]))
            size, tokens = float(np.exp(n)), float(np.exp(d))
            found.append(Optimum(float(work), size, tokens, tokens / size, loss, ci95))
    return found
