"""The compute-optimal frontier from isoFLOP curves (Hoffmann et al. 2022, section 3.2)."""

from typing import Any

import numpy as np
from scipy import stats

from bigjax.science.laws.adequacy import SIGNIFICANT
from bigjax.science.laws.frontier import BEYOND, FrontierFit, frontier_lines
from bigjax.science.laws.interpolate import INTERPOLATORS, LEAST_SIZES, Interpolate, curve, minimum, parabola
from bigjax.science.laws.points import Excluded, Points, budgets
from bigjax.science.laws.robust import FitError, clusters, widened

WINDOWS = (4.0, 2.0)
"""Factors about the best size of a budget that are tried beside all sizes."""

LOST = (
    "{share:.0%} of the bootstrap replicates have a budget whose curve has no minimum, most often that of {flops:.3g} "
    "FLOPs: where more than 2.5 % lead to one side, an interval has no end there"
)


def fit_isoflop(
    points: Points,
    *,
    bootstrap: int = 400,
    seed: int = 0,
    tolerance: float = 0.1,
    interpolate: Interpolate = "parabola",
    window: float | None = None,
) -> FrontierFit:
    """Fit a curve of the loss in log N to each compute budget, and power laws to the minima.

    The curve is a parabola (Hoffmann et al. 2022), a cubic by least squares, or Akima's through the means of each size
    (Porian et al. 2024, appendix). `window` keeps the sizes within that factor of the best one of their budget. The
    noise is that about parabolas, whichever the curve.

    Budgets are runs whose FLOPs agree within `tolerance`. One with fewer than 3 sizes, whose parabola opens downwards,
    or whose minimum lies outside of its sizes is left out, with its reason in `excluded`. Each budget has noise of
    its own. An interval is open, to 0 or infinity, on a side where the noise may take a minimum away; `warnings` says
    so, and why there is none.

    Raises:
        FitError: fewer than 2 budgets remain.
    """
    if window is not None:
        points = points.take(within(points, budgets(points.flops, tolerance), window))
    index = budgets(points.flops, tolerance)
    used, excluded = [], []
    for budget in range(index.max() + 1):
        group = points.take(index == budget)
        name = f"budget of {np.median(group.flops):.3g} FLOPs ({len(group)} runs)"
        if reason := _problem(group, interpolate):
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
    minima, parabolas = _minima(chosen, group, chosen.loss[None], interpolate)
    theta = frontier_lines(np.log(flops), minima[0, 0], minima[1, 0], centre)
    drawn, freedom, total = _redrawn(chosen, group, bootstrap, seed)
    random, _ = _minima(chosen, group, drawn, interpolate)
    if interpolate != "parabola":
        # Losses are drawn about parabolas: what the other curve makes of these alone is no noise.
        without = _minima(chosen, group, _curve(chosen, group, parabolas[0])[None], interpolate)[0]
        shift = minima - without
        random += np.where((np.abs(random) < BEYOND) & (np.abs(shift) < BEYOND / 2), shift, 0.0)
    effective = _effective_freedom(random[0], freedom, np.log(flops)) if total > 0 else 0.0
    lost = (np.abs(random) >= BEYOND).any(axis=0)
    # One size beyond all others moves the line one way; of several, each pulls its own.
    random[:, lost.sum(axis=1) > 1] = np.nan
    raw = frontier_lines(np.log(flops), random[0], random[1], centre)
    share = np.count_nonzero(lost.sum(axis=1)) / max(bootstrap, 1)
    warnings = [LOST.format(share=share, flops=flops[lost.sum(axis=0).argmax()])] if share > 0.01 else []
    if total < 1:
        count = 3 * len(used)
        warnings = [f"{count + total} distinct points for {count} coefficients of parabolas: no intervals"]
    warnings += _doubts(chosen, group, parabolas[0])
    mean, *coefficients = parabolas[0]
    lowest = np.array(
        [
            curve(np.log(rows.params), rows.loss, rows.weight, interpolate, at[None])[0]
            for rows, at in zip((chosen.take(group == k) for k in range(len(used))), minima[0, 0], strict=True)
        ]
    )
    return FrontierFit(
        centre=centre,
        theta=theta,
        flops=flops,
        params=np.exp(minima[0, 0]),
        tokens=np.exp(minima[1, 0]),
        loss=lowest,
        objective=float(chosen.weight @ (chosen.loss - _curve(chosen, group, parabolas[0])) ** 2),
        n_points=len(chosen),
        converged=True,
        conventions=points.conventions,
        excluded=tuple(excluded),
        warnings=tuple(warnings),
        replicates=widened(theta, raw, effective),
        parabolas=np.stack([mean, *coefficients], axis=1),
        interpolate=interpolate,
        window=window,
    )


def compare_curves(points: Points, window: float | None = None) -> list[dict[str, Any]]:
    """Return the exponent of N and the best size at the largest budget for each curve and window, without intervals."""
    rows: list[dict[str, Any]] = []
    for factor in dict.fromkeys((None, *WINDOWS, window)):
        for how in INTERPOLATORS:
            row: dict[str, Any] = {"interpolate": how, "window": factor}
            try:
                fit = fit_isoflop(points, bootstrap=0, interpolate=how, window=factor)
            except FitError as error:
                rows.append(row | {"skipped": str(error)})
                continue
            found = {"N_exponent": fit.parameters["N_exponent"], "C": float(fit.flops[-1]), "N": float(fit.params[-1])}
            rows.append(row | found | {"budgets": len(fit.flops)})
    return rows


def within(points: Points, index: np.ndarray, window: float) -> np.ndarray:
    """Return which points `(n,)` have a size within the factor of that with the least mean loss of their budget."""
    if not window > 1:
        raise FitError(f"the window of isoFLOP curves is a factor above 1, not {window:g}")
    kept = np.zeros(len(points), bool)
    for budget in range(index.max() + 1):
        rows = np.flatnonzero(index == budget)
        sizes, of_size = np.unique(points.params[rows], return_inverse=True)
        weight = points.weight[rows]
        means = np.bincount(of_size, weight * points.loss[rows]) / np.bincount(of_size, weight)
        best = sizes[means.argmin()]
        kept[rows] = np.abs(np.log(points.params[rows] / best)) <= np.log(window) * (1 + 1e-9)
    return kept


def _redrawn(points: Points, group: np.ndarray, bootstrap: int, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return losses `(bootstrap, n)` with other noise, degrees of freedom `(k,)` of each budget's, and how many in all.

    The sizes are chosen and not drawn, so it is the residuals that are drawn anew (Davison and Hinkley 1997, section
    6.2.3), each from those of its own budget, since the noise of budgets differs (stratified, section 3.2 there): a
    setting's seeds being one, over √(1 - leverage), with the variance that they leave per degree of freedom. A budget
    that leaves none draws from all. The ends of a parabola pull it to themselves: to weigh the points at random instead
    takes their small residuals for small noise.
    """
    cluster = clusters(points.params, points.tokens)
    first = np.unique(cluster, return_index=True)[1]
    weight, of_budget = np.bincount(cluster, points.weight), group[first]
    curve = _curve(points, group, _minima(points, group, points.loss[None])[1][0])
    residual = np.sqrt(weight) * np.bincount(cluster, points.weight * (points.loss - curve)) / weight
    leverage = np.empty(len(first))
    for budget in range(group.max() + 1):
        rows = of_budget == budget
        z = np.log(points.params[first][rows])
        basis = np.linalg.qr(np.sqrt(weight[rows, None]) * np.vander(z - z.mean(), 3)).Q
        leverage[rows] = (basis**2).sum(axis=1)
    freedom = np.bincount(of_budget) - 3
    total = int(freedom.sum())
    if total < 1:
        return np.tile(curve, (bootstrap, 1)), freedom, total
    rng, noise = np.random.default_rng(seed), np.empty((bootstrap, len(first)))
    for budget in range(group.max() + 1):
        rows = of_budget == budget
        source = rows if freedom[budget] else np.ones(len(first), bool)
        seen = source & (leverage < 1 - 1e-9)  # three sizes are met exactly, whatever the noise
        pool = residual[seen] / np.sqrt(1 - leverage[seen])
        pool -= pool.mean()
        if pool.any():
            left = residual[source] @ residual[source] / (freedom[budget] or total)
            pool *= np.sqrt(left / np.mean(pool**2))
        noise[:, rows] = rng.choice(pool, (bootstrap, int(rows.sum()))) / np.sqrt(weight[rows])
    return curve + noise[:, cluster], np.where(freedom > 0, freedom, total), total


def _effective_freedom(minima: np.ndarray, freedom: np.ndarray, log_flops: np.ndarray) -> float:
    """Return the degrees of freedom of the exponent for minima `(r, k)` of unequal noise (Satterthwaite 1946).

    The exponent is a sum over budgets, and a budget's share of its variance is known by its own `freedom` `(k,)`.
    """
    if not len(minima):
        return float(freedom.min())
    low, high = np.quantile(minima, (0.25, 0.75), axis=0)  # of a normal: 1.35 standard deviations apart
    share = (high - low) ** 2 * (log_flops - log_flops.mean()) ** 2
    if not share.any():
        return float(freedom.sum())
    share /= share.max()
    return float(share.sum() ** 2 / (share**2 / freedom).sum())


def _problem(group: Points, interpolate: Interpolate) -> str | None:
    """Return why a budget has no usable minimum, or None."""
    sizes = len(np.unique(group.params))
    if sizes < LEAST_SIZES[interpolate]:
        named = {"parabola": "a parabola", "cubic": "a cubic", "akima": "Akima's curve"}[interpolate]
        return f"{named} needs at least {LEAST_SIZES[interpolate]} sizes, not {sizes}"
    z = np.log(group.params) - np.log(group.params).mean()
    if np.ptp(group.loss) < 1e-12 * group.loss.max():
        return "its losses are all the same"
    if interpolate == "parabola" and parabola(z, group.loss[None], group.weight)[0, 2] <= 0:
        return "its parabola opens downwards"
    found = minimum(z, group.loss[None], group.weight, interpolate)[0]
    if not z.min() <= found <= z.max():
        return "its minimum lies outside of the sizes tried"
    return None


def _curve(points: Points, group: np.ndarray, parabolas: np.ndarray) -> np.ndarray:
    """Return the loss `(n,)` of the points' parabolas, `(4, k)` as of `_minima`."""
    z = np.log(points.params) - parabolas[0, group]
    return np.polynomial.polynomial.polyval(z, parabolas[1:, group], tensor=False)


def _doubts(points: Points, group: np.ndarray, parabolas: np.ndarray) -> list[str]:
    """Return a sentence if the loss does not depend on size within a budget (F test of parabolas against means)."""
    totals = np.bincount(group, points.weight)
    means = np.bincount(group, points.weight * points.loss) / totals
    spread = points.weight @ (points.loss - means[group]) ** 2
    left = points.weight @ (points.loss - _curve(points, group, parabolas)) ** 2
    explained, freedom = 2 * len(means), len(points) - 3 * len(means)
    if freedom < 1 or left <= 1e-18 * spread:
        return []
    chance = stats.f.sf((spread - left) / explained / (left / freedom), explained, freedom)
    if chance < SIGNIFICANT:
        return []
    return [f"the curves explain nothing: of losses that do not depend on size {chance:.0%} would look as curved"]


def _minima(
    points: Points, group: np.ndarray, losses: np.ndarray, interpolate: Interpolate = "parabola"
) -> tuple[np.ndarray, np.ndarray]:
    """Return log N and log D at the minima `(2, r, k)` for losses `(r, n)`, and the parabolas in log N `(r, 4, k)`.

    The minimum in tokens has a curve of its own: only for FLOPs of 6ND is it the mirror image of that in size.
    """
    minima, parabolas = [], []
    for budget in range(group.max() + 1):
        rows = group == budget
        values, weight = np.log(points.params[rows]), points.weight[rows]
        coefficients = parabola(values - values.mean(), losses[:, rows], weight)
        parabolas.append(np.insert(coefficients, 0, values.mean(), axis=1))
        minima.append(
            [minimum(each, losses[:, rows], weight, interpolate) for each in (values, np.log(points.tokens[rows]))]
        )
    return np.moveaxis(np.array(minima), 0, -1), np.moveaxis(np.array(parabolas), 0, -1)
