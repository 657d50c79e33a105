"""The compute-optimal frontier from isoFLOP curves (Hoffmann et al. 2022, section 3.2)."""

import numpy as np

from bigjax.science.fits_frontier import FrontierFit, frontier_lines
from bigjax.science.fits_points import Excluded, Points, budgets
from bigjax.science.fits_robust import FitError, bootstrap_weights, clusters, spread


def fit_isoflop(points: Points, *, bootstrap: int = 400, seed: int = 0, tolerance: float = 0.1) -> FrontierFit:
    """Fit a parabola of the loss in log N to each compute budget, and power laws to the minima.

    Budgets are runs whose FLOPs agree within `tolerance`. One with fewer than 3 sizes, whose parabola opens downwards,
    or whose minimum lies outside of its sizes is left out, with its reason in `excluded`.

    Raises:
        FitError: fewer than 2 budgets remain.
    """
    index = budgets(points.flops, tolerance)
    used, excluded = [], []
    for budget in range(index.max() + 1):
        group = points.take(index == budget)
        name = f"budget of {np.median(group.flops):.3g} FLOPs ({len(group)} runs)"
        if reason := _problem(group):
            excluded.append(Excluded(name, reason))
        else:
            used.append(np.flatnonzero(index == budget))
    if len(used) < 2:
        reason = f" ({excluded[0].point}: {excluded[0].reason})" if excluded else ""
        raise FitError(
            f"isoFLOP curves need at least 2 compute budgets with a minimum inside their sizes, not {len(used)}{reason}"
        )
    chosen = points.take(np.concatenate(used))
    group = np.repeat(np.arange(len(used)), [len(rows) for rows in used])
    flops = np.array([np.median(points.flops[rows]) for rows in used])
    centre = float(np.log(flops).mean())
    minima, parabolas = _minima(chosen, group, chosen.weight[None])
    theta = frontier_lines(np.log(flops), minima[0, 0], minima[1, 0], centre)
    cluster = clusters(chosen.params, chosen.tokens)
    random, _ = _minima(chosen, group, chosen.weight * bootstrap_weights(cluster, bootstrap, seed))
    # A replicate with a budget that has lost its minimum says nothing of the frontier through all of them.
    lost = np.isnan(random.sum(axis=(0, 2)))
    random[:, lost] = np.nan
    raw = frontier_lines(np.log(flops), random[0], random[1], centre)
    count, parameters = int(cluster.max()) + 1, 3 * len(used)
    share = lost.sum() / max(bootstrap, 1)
    warnings = [f"{share:.0%} of the bootstrap replicates lose a minimum"] if share > 0.01 else []
    if count <= parameters:
        warnings.append(f"{count} distinct points for {parameters} coefficients of parabolas: no intervals")
    mean, *coefficients = parabolas[0]
    z = np.log(chosen.params) - mean[group]
    residuals = chosen.loss - sum(coefficient[group] * z**power for power, coefficient in enumerate(coefficients))
    return FrontierFit(
        centre=centre,
        theta=theta,
        flops=flops,
        params=np.exp(minima[0, 0]),
        tokens=np.exp(minima[1, 0]),
        loss=coefficients[0] - coefficients[1] ** 2 / (4 * coefficients[2]),
        objective=float(chosen.weight @ residuals**2),
        n_points=len(chosen),
        converged=True,
        conventions=points.conventions,
        excluded=tuple(excluded),
        warnings=tuple(warnings),
        replicates=spread(theta, raw, count, parameters),
        parabolas=np.stack([mean, *coefficients], axis=1),
    )


def _problem(group: Points) -> str | None:
    """Return why a budget has no usable minimum, or None."""
    sizes = len(np.unique(group.params))
    if sizes < 3:
        return f"a parabola needs at least 3 sizes, not {sizes}"
    z = np.log(group.params) - np.log(group.params).mean()
    if np.ptp(group.loss) < 1e-12 * group.loss.max():
        return "its losses are all the same"
    _, slope, curvature = _parabola(z, group.loss, group.weight[None])[0]
    if curvature <= 0:
        return "its parabola opens downwards"
    if not z.min() <= -slope / (2 * curvature) <= z.max():
        return "its minimum lies outside of the sizes tried"
    return None


def _parabola(z: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients `(r, 3)` of 1, z, z² by weighted least squares, for weights `(r, n)`."""
    design = np.vander(z, 3, increasing=True)
    weighted = np.swapaxes(design * weights[:, :, None], 1, 2)
    return np.linalg.solve(weighted @ design, weighted @ values[:, None])[:, :, 0]


def _minima(points: Points, group: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log N and log D at the minima `(2, r, k)` for weights `(r, n)`, and the parabolas in log N `(r, 4, k)`.

    The minimum in tokens has a parabola of its own: only for FLOPs of 6ND is it the mirror image of that in size.
    """
    minima, parabolas = [], []
    for budget in range(group.max() + 1):
        rows = group == budget
        found = []
        for values in (np.log(points.params[rows]), np.log(points.tokens[rows])):
            z = values - values.mean()
            coefficients = _parabola(z, points.loss[rows], weights[:, rows])
            slope, curvature = coefficients[:, 1], coefficients[:, 2]
            found.append(values.mean() + np.where(curvature > 0, -slope / (2 * curvature), np.nan))
            if len(found) == 1:
                parabolas.append(np.insert(coefficients, 0, values.mean(), axis=1))
        minima.append(found)
    return np.moveaxis(np.array(minima), 0, -1), np.moveaxis(np.array(parabolas), 0, -1)
