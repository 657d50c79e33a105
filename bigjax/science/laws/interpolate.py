"""The curve through the losses of one compute budget, and its minimum."""

from typing import Literal

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from bigjax.science.laws.frontier import BEYOND

Interpolate = Literal["parabola", "cubic", "akima"]

INTERPOLATORS: tuple[Interpolate, ...] = ("parabola", "cubic", "akima")

LEAST_SIZES = {"parabola": 3, "cubic": 4, "akima": 3}
"""How many sizes a budget needs for a curve: as many as it has coefficients, or a middle one."""

SAME_SIZE = 1e-3
"""How far apart log sizes may be and still be one: between those read off a figure a curve would have spikes."""

STEPS = 401
"""Points between the smallest and the largest size at which an Akima curve is looked at."""


def parabola(z: np.ndarray, losses: np.ndarray, weight: np.ndarray, terms: int = 3) -> np.ndarray:
    """Return the coefficients `(r, terms)` of 1, z, z² ... by weighted least squares, for losses `(r, n)`."""
    design = np.vander(z, terms, increasing=True)
    weighted = design.T * weight
    return np.linalg.solve(weighted @ design, weighted @ losses.T).T


def minimum(x: np.ndarray, losses: np.ndarray, weight: np.ndarray, how: Interpolate) -> np.ndarray:
    """Return where the curves through `losses` `(r, n)` at `x` `(n,)` are least `(r,)`.

    A curve without a minimum falls towards one that lies `BEYOND` all sizes; a parabola's may lie outside of them.
    """
    middle = x.mean()
    if how == "parabola":
        _, slope, curvature = parabola(x - middle, losses, weight).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.clip(middle - slope / (2 * np.maximum(curvature, 0.0)), -BEYOND, BEYOND)
    if how == "cubic":
        _, c1, c2, c3 = parabola(x - middle, losses, weight, 4).T
        with np.errstate(divide="ignore", invalid="ignore"):
            # Of the two roots of the slope the one where it grows, in the form that a vanishing c3 leaves finite.
            found = middle - c1 / (c2 + np.sqrt(c2**2 - 3 * c1 * c3))
        ends = parabola(x - middle, losses, weight, 4) @ np.vander(np.array([x.min(), x.max()]) - middle, 4, True).T
        lost = ~(np.isfinite(found) & (found >= x.min()) & (found <= x.max()))
        return np.where(lost, np.where(ends[:, 0] < ends[:, 1], -BEYOND, BEYOND), found)
    through = _akima(x, losses, weight)
    grid = np.linspace(through.x[0], through.x[-1], STEPS)
    curves = through(grid).T
    least = curves.argmin(axis=1)
    inner, row = np.clip(least, 1, STEPS - 2), np.arange(len(curves))
    before, at, after = (curves[row, inner + step] for step in (-1, 0, 1))
    bend = before - 2 * at + after
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(bend > 0, 0.5 * (before - after) / bend, 0.0)  # of the parabola through the three
    found = grid[inner] + shift * (grid[1] - grid[0])
    return np.where(least == 0, -BEYOND, np.where(least == STEPS - 1, BEYOND, found))


def curve(x: np.ndarray, loss: np.ndarray, weight: np.ndarray, how: Interpolate, at: np.ndarray) -> np.ndarray:
    """Return the curve through `loss` `(n,)` at `at`; NaN outside of the sizes for Akima's."""
    if how == "akima":
        return _akima(x, loss[None], weight)(at)[:, 0]
    coefficients = parabola(x - x.mean(), loss[None], weight, 3 if how == "parabola" else 4)[0]
    return np.polynomial.polynomial.polyval(at - x.mean(), coefficients)


def _akima(x: np.ndarray, losses: np.ndarray, weight: np.ndarray) -> Akima1DInterpolator:
    """Return Akima's curves (1970) through the means of each size."""
    order = np.argsort(x, kind="stable")
    index = np.empty(len(x), int)
    index[order] = np.cumsum(np.diff(x[order], prepend=-np.inf) > SAME_SIZE) - 1
    share = weight * (index == np.arange(index.max() + 1)[:, None])
    share /= share.sum(axis=1, keepdims=True)
    return Akima1DInterpolator(share @ x, share @ losses.T, axis=0)
