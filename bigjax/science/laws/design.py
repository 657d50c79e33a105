"""Which runs to make next, so that a fit becomes more certain."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bigjax.science.laws.compute_optimal import optimal_logs
from bigjax.science.laws.formula.bounds import SAME_SIZE
from bigjax.science.laws.formula.law import Law
from bigjax.science.laws.parametric import NAMES, ParametricFit, log_loss_model
from bigjax.science.laws.points import FlopModel
from bigjax.science.laws.robust import FitError

MAX_RUNS = 6


@dataclass(frozen=True)
class ProposedRun:
    """A run worth making: N parameters, D tokens, for C FLOPs."""

    N: float
    D: float
    C: float


@dataclass(frozen=True)
class Design:
    """Runs to make next.

    Attributes:
        target_flops: the budget whose compute-optimal size the design is for (criterion c).
        size_factor_before, size_factor_after: half width of the 95 % interval of that size, as a factor: 1.2 means that
            it lies between 1/1.2 and 1.2 of the estimate, expected from the curvature of the fit.
        volume_factor: by how much the volume of the confidence ellipsoid of all five parameters shrinks.
    """

    runs: tuple[ProposedRun, ...]
    criterion: Literal["c", "D"]
    target_flops: float
    size_factor_before: float
    size_factor_after: float
    volume_factor: float


def design_next(
    fit: ParametricFit, budget: float, *, target_flops: float | None = None, criterion: Literal["c", "D"] = "c"
) -> Design:
    """Propose up to 6 runs, together of at most `budget` FLOPs, that shrink the interval most.

    A greedy search over a grid of sizes and tokens per parameter (2 to 200), for every number of equally
    dear runs. Criterion `c` minimises the variance of the compute-optimal log N at `target_flops` (by default ten times
    the budget), criterion `D` maximises the determinant of the information (Atkinson, Donev and Tobias 2007,
    chapters 10 and 11; locally optimal at the fit, chapter 17). What the fit knows so far is its bootstrap covariance.

    Raises:
        FitError: the budget is not above 0, or the fit has no bootstrap replicates, interval or optimum.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise FitError(f"the budget of the next runs must be above 0 FLOPs, not {budget:g}")
    if len(fit.replicates) < 20 or not np.isfinite(fit.replicates).all():
        raise FitError("the next runs can only be chosen for a fit with bootstrap intervals")
    if min(fit.alpha, fit.beta) <= 0:
        raise FitError("the next runs can only be chosen for a law whose exponents are above 0")
    target = target_flops or 10 * budget
    covariance = np.cov(fit.replicates.T)
    # One run tells as much as the covariance of the fit says of its points: trace(cov J'J) = p noise².
    noise = np.sqrt(np.trace(covariance @ fit.jacobian.T @ fit.jacobian) / len(NAMES))
    direction = _direction(fit, np.log(target))
    designs = []
    for count in range(1, MAX_RUNS + 1):
        rows, runs = _candidates(fit, budget / count)
        designs.append(_greedy(covariance, rows / noise, direction, count, criterion, runs))
    scores = [_score(after, direction, criterion) for after, _ in designs]
    after, chosen = designs[int(np.argmin(scores))]
    half = [1.96 * np.sqrt(direction @ matrix @ direction) for matrix in (covariance, after)]
    shrinkage = 0.5 * (np.linalg.slogdet(after)[1] - np.linalg.slogdet(covariance)[1])
    return Design(tuple(chosen), criterion, target, *map(float, np.exp(half)), volume_factor=float(np.exp(shrinkage)))


@dataclass(frozen=True)
class TargetDesign:
    """Runs that make the loss of a target known best; half widths of the law's 95 % interval there, in log loss."""

    runs: tuple[ProposedRun, ...]
    half_before: float
    half_after: float


def design_for(law: Law, N: float, D: float, budget: float) -> TargetDesign:
    """Propose up to 6 runs, together of at most `budget` FLOPs, that shrink the interval of the loss at N and D most.

    As `design_next`, with the loss of the target for the criterion; the same run twice is a second seed. What the law
    knows so far is the covariance of its replicates, in logarithms of parameters above and not near 0.

    Raises:
        FitError: the budget is not above 0 or reaches the target, or the law has no replicates or no N and D.
    """
    model = law.flop_model
    cost = model.coefficient * N**model.size_exponent * D
    if not (np.isfinite(budget) and 0 < budget < cost):
        raise FitError(f"the budget must be above 0 and below the {cost:.3g} FLOPs of the target, not {budget:g}")
    formula = law.formula
    if formula is None or set(law.variables) != {"N", "D"}:
        raise FitError(f"runs can be chosen for a law of N and D, and that of {law.method} is none")
    if len(law.replicates) < 20 or not np.isfinite(law.replicates).all():
        raise FitError("runs can only be chosen for a law with bootstrap intervals, or a prior with --prior_sd")
    values = np.array(list(law.parameters.values()))
    # One that may be 0, as E, has no logarithm that varies as a normal number.
    positive = (law.replicates.min(axis=0) > SAME_SIZE * law.replicates.max(axis=0)) & (values > 0)
    covariance = np.cov(np.where(positive, np.log(np.where(positive, law.replicates, 1.0)), law.replicates).T)
    noise = float(np.sqrt(np.mean(law.noise**2)))
    if not noise > 0:
        raise FitError("the law says nothing of the noise of a run: runs cannot be chosen")

    def rows(sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        value, slopes = formula.derivatives({"N": sizes, "D": tokens, **law.parameters}, law.parameters)
        columns = [np.broadcast_to(slopes[name], np.shape(value)) / value for name in law.parameters]
        return np.stack(columns, axis=-1) * np.where(positive, values, 1.0)

    direction = rows(np.array([N]), np.array([D]))[0]
    designs = []
    for count in range(1, MAX_RUNS + 1):
        runs = _runs(model, budget / count)
        jacobian = rows(*np.array([(run.N, run.D) for run in runs]).T)
        designs.append(_greedy(covariance, jacobian / noise, direction, count, "c", runs))
    after, chosen = min(designs, key=lambda found: direction @ found[0] @ direction)
    halves = [1.96 * float(np.sqrt(direction @ matrix @ direction)) for matrix in (covariance, after)]
    return TargetDesign(tuple(chosen), *halves)


def _direction(fit: ParametricFit, log_target: float) -> np.ndarray:
    """Return the derivative `(5,)` of log N_opt at the target, by central differences."""

    def size(theta: np.ndarray) -> float:
        return float(optimal_logs(theta, np.array([log_target]), fit.flop_model)[0][0])

    steps = 1e-5 * np.maximum(np.abs(fit.theta), 1e-2)
    return np.array([(size(fit.theta + h) - size(fit.theta - h)) / (2 * h.sum()) for h in np.diag(steps)])


def _candidates(fit: ParametricFit, flops: float) -> tuple[np.ndarray, list[ProposedRun]]:
    """Return the Jacobian `(m, 5)` and the runs that spend `flops`, a tenth or a hundredth of it."""
    runs = _runs(fit.flop_model, flops)
    logs = np.log([[run.N, run.D] for run in runs])
    return log_loss_model(*logs.T)(fit.theta)[1], runs


def _runs(model: FlopModel, flops: float) -> list[ProposedRun]:
    """Return runs of many sizes that spend `flops`, a tenth or a hundredth of it."""
    runs = []
    for work in (flops, flops / 10, flops / 100):
        for ratio in np.geomspace(2, 200, 41):
            size = (work / (model.coefficient * ratio)) ** (1 / (1 + model.size_exponent))
            runs.append(ProposedRun(float(size), float(ratio * size), float(work)))
    return runs


def _greedy(covariance, rows, direction, count, criterion, runs) -> tuple[np.ndarray, list[ProposedRun]]:
    """Return the covariance after `count` runs, chosen one by one, and the runs (rank-one updates)."""
    chosen = []
    for _ in range(count):
        moved = rows @ covariance
        informed = np.einsum("mp,mp->m", moved, rows)
        gain = (moved @ direction) ** 2 / (1 + informed) if criterion == "c" else informed
        best = int(np.argmax(gain))
        covariance = covariance - np.outer(moved[best], moved[best]) / (1 + informed[best])
        chosen.append(runs[best])
    return covariance, chosen


def _score(covariance: np.ndarray, direction: np.ndarray, criterion: str) -> float:
    return float(direction @ covariance @ direction if criterion == "c" else np.linalg.slogdet(covariance)[1])
