"""The compute-optimal frontier as the lower envelope of loss curves (Hoffmann et al. 2022, section 3.1)."""

import numpy as np

from bigjax.science.laws.frontier import FrontierFit, frontier_lines
from bigjax.science.laws.points import Curve, Excluded, Points, budgets
from bigjax.science.laws.robust import FitError, spread

LEVELS = 400
"""FLOP levels, log-spaced, at which the best run is looked for; the paper has 1,500."""

SAME_SIZE = 1e-3
"""How far apart sizes may be and still be one: those read off a figure differ in the last digits."""

LEAST_EXPLAINED = 0.5
"""The share of the variance of log N below which the frontier is no power law of the FLOPs."""

SCHEDULE_WARNING = (
    "points of a loss curve before its end are not annealed: the frontier is that of interrupted schedules "
    "(Hoffmann et al. 2022, appendix B)"
)


def fit_envelope(points: Points, *, bootstrap: int = 400, seed: int = 0) -> FrontierFit:
    """Find the run with the least loss at each FLOP level and fit power laws to its size and tokens.

    Loss curves are `points.curves`, or else go through the runs of each size. A level counts where at least 3 sizes
    reach and the best is neither the smallest nor the largest of them. The bootstrap draws whole curves
    and looks at the same levels.

    Raises:
        FitError: fewer than 3 sizes with curves that overlap, or fewer than 2 best sizes.
    """
    sizes, curves, excluded = _curves(points)
    if len(np.unique(sizes)) < 3:
        raise FitError(
            f"an envelope needs loss curves of at least 3 sizes, not {len(np.unique(sizes))}: "
            "give each size several token counts, or runs with metrics.jsonl"
        )
    model = points.flop_model()
    work = [
        model.coefficient * size**model.size_exponent * curve.tokens for size, curve in zip(sizes, curves, strict=True)
    ]
    log_levels = np.log(np.geomspace(min(w[0] for w in work), max(w[-1] for w in work), LEVELS))
    log_loss = np.stack(
        [
            np.interp(log_levels, np.log(w), np.log(curve.loss), left=np.nan, right=np.nan)
            for w, curve in zip(work, curves, strict=True)
        ]
    )
    best = _least(log_loss)
    known = _inside(sizes, log_loss, best)
    best = np.where(known, best, -1)
    if len(np.unique(sizes[best[known]])) < 2:
        raise FitError(
            "the envelope has no frontier: at no two FLOP levels is the best of at least 3 sizes another inner one"
        )
    centre = float(log_levels[known].mean())

    def minima(best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_n = np.where(best >= 0, np.log(sizes)[best], np.nan)
        return log_n, log_levels - np.log(model.coefficient) - model.size_exponent * log_n

    log_n, log_d = minima(best)
    theta = frontier_lines(log_levels, log_n, log_d, centre)
    rng = np.random.default_rng(seed)
    raw = np.full((bootstrap, 4), np.nan)
    for replicate in range(bootstrap):
        drawn = np.unique(rng.integers(len(sizes), size=len(sizes)))
        found = _least(log_loss[drawn])
        raw[replicate] = frontier_lines(log_levels, *minima(np.where(known & (found >= 0), drawn[found], -1)), centre)
    warnings = (
        [SCHEDULE_WARNING] if points.curves else ["curves go through the runs of each size, straight in logarithms"]
    )
    if len(np.unique(sizes[best[known]])) < 4:
        warnings.append(f"only {len(np.unique(sizes[best[known]]))} sizes are ever best: the frontier is a staircase")
    if (share := np.isnan(raw[:, 1]).sum() / max(bootstrap, 1)) > 0.01:
        warnings.append(
            f"{share:.0%} of the bootstrap replicates have no frontier: it may be any there, and where that is more "
            "than 2.5 %, intervals have no ends"
        )
    residuals = (log_n - theta[0] - theta[1] * (log_levels - centre))[known]
    if (explained := 1 - np.var(residuals) / np.var(log_n[known])) < LEAST_EXPLAINED:
        warnings.append(f"the FLOPs explain {explained:.0%} of how the best sizes vary: there is no power law to see")
    return FrontierFit(
        centre=centre,
        theta=theta,
        flops=np.exp(log_levels[known]),
        params=np.exp(log_n[known]),
        tokens=np.exp(log_d[known]),
        loss=np.exp(log_loss[best, np.arange(LEVELS)][known]),
        objective=float(residuals @ residuals),
        n_points=int(known.sum()),
        converged=True,
        conventions=points.conventions,
        excluded=excluded,
        warnings=tuple(warnings),
        replicates=spread(theta, raw, len(sizes), 2),
        parabolas=np.empty((0, 4)),
    )


def _curves(points: Points) -> tuple[np.ndarray, list[Curve], tuple[Excluded, ...]]:
    """Return the size `(c,)` and the curve of each run, or of each size's runs, and what has too few points for one."""
    if points.curves:
        kept = [index for index, curve in enumerate(points.curves) if len(curve.tokens) > 1]
        short = [points.names[index] for index in range(len(points)) if index not in kept]
        found = points.params[kept], [points.curves[index] for index in kept]
    else:
        of_size = budgets(points.params, SAME_SIZE)
        sizes = np.array([np.median(points.params[of_size == i]) for i in range(of_size.max() + 1)])
        grouped = [_mean_by_tokens(points.tokens[of_size == i], points.loss[of_size == i]) for i in range(len(sizes))]
        kept = [index for index, curve in enumerate(grouped) if len(curve.tokens) > 1]
        short = [f"size {sizes[index]:.4g}" for index in range(len(sizes)) if index not in kept]
        found = sizes[kept], [grouped[index] for index in kept]
    return *found, tuple(Excluded(name, "its loss curve has fewer than 2 points") for name in short)


def _mean_by_tokens(tokens: np.ndarray, loss: np.ndarray) -> Curve:
    """Return the curve through runs of one size, seeds averaged."""
    distinct, index = np.unique(tokens, return_inverse=True)
    return Curve(distinct, np.bincount(index, loss) / np.bincount(index))


def _least(log_loss: np.ndarray) -> np.ndarray:
    """Return the index of the curve `(c, levels)` with the least loss at each level, -1 where none reaches."""
    reached = np.isfinite(log_loss)
    return np.where(reached.any(axis=0), np.argmin(np.where(reached, log_loss, np.inf), axis=0), -1)


def _inside(sizes: np.ndarray, log_loss: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return at which levels the best size lies between others that reach: at an edge a better one may not be there."""
    reached = np.isfinite(log_loss)
    largest = np.where(reached, sizes[:, None], -np.inf).max(axis=0)
    smallest = np.where(reached, sizes[:, None], np.inf).min(axis=0)
    return (best >= 0) & (sizes[best] > smallest) & (sizes[best] < largest)
