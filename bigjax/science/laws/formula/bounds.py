"""Coordinates without bounds for parameters with them."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, logit

from bigjax.science.laws.robust import SEEN_SHARE, spread

AT_BOUND = 1e-6
"""A parameter lies at its bound if its distance from there changes the law by no more than this share."""

FARTHEST = 40.0
"""How far a coordinate is moved back from a bound at the most; e^40 is 2e17."""

MARGIN = 1e-3
"""How far from a bound, as a share of its distance from the other or of its size, a search starts."""

SAME_SIZE = 1e-3
"""Replicates whose least is below this share of the largest are spread as such, others of one sign in logarithms."""


class Coordinates:
    """Free coordinates t of p parameters: p itself, low + e^t, high - e^t, or low + (high - low) / (1 + e^-t)."""

    def __init__(self, bounds: Sequence[tuple[float, float]]):
        self.low, self.high = np.array(bounds, float).reshape(-1, 2).T
        below, above = np.isfinite(self.low), np.isfinite(self.high)
        self.both, self.only_low, self.only_high = below & above, below & ~above, above & ~below

    def inside(self, values: np.ndarray) -> np.ndarray:
        """Return values `(s, p)` moved inside of the bounds, none of them onto one."""
        with np.errstate(invalid="ignore"):
            margin = MARGIN * np.where(self.both, self.high - self.low, np.maximum(np.abs(values), 1e-6))
        return np.clip(values, self.low + margin, self.high - margin)

    def to_free(self, values: np.ndarray) -> np.ndarray:
        """Return the coordinates of values `(..., p)` inside of the bounds."""
        free = values.astype(float).copy()
        one, other, two = self.only_low, self.only_high, self.both
        free[..., one] = np.log(values[..., one] - self.low[one])
        free[..., other] = np.log(self.high[other] - values[..., other])
        free[..., two] = logit((values[..., two] - self.low[two]) / (self.high - self.low)[two])
        return free

    def to_plain(self, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the parameters at coordinates `(..., p)` and their derivatives, of the same shape."""
        values, slopes = free.astype(float).copy(), np.ones_like(free, float)
        with np.errstate(over="ignore"):
            grown = np.exp(free)
        one, other, two = self.only_low, self.only_high, self.both
        values[..., one], slopes[..., one] = self.low[one] + grown[..., one], grown[..., one]
        values[..., other], slopes[..., other] = self.high[other] - grown[..., other], -grown[..., other]
        share, width = expit(free[..., two]), (self.high - self.low)[two]
        values[..., two], slopes[..., two] = self.low[two] + width * share, width * share * (1 - share)
        return values, slopes

    def sizes(self, plain: Callable, free: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return by how much each coordinate `(p,)` moves to change the law by 1; a bounded one by no more than 1."""
        values, slopes = self.to_plain(free)
        jacobian = plain(values)[1] * slopes
        length = np.sqrt(weights @ jacobian**2 / weights.sum())
        size = 1 / np.where(np.isfinite(length) & (length > 0), length, 1.0)
        return np.where(np.isfinite(self.low) | np.isfinite(self.high), np.minimum(size, 1.0), size)

    def at_bound(self, jacobian: np.ndarray) -> np.ndarray:
        """Return which parameters lie at a bound, by the Jacobian `(n, p)` in the coordinates."""
        bounded = np.isfinite(self.low) | np.isfinite(self.high)
        return bounded & (np.abs(jacobian).max(axis=0) < AT_BOUND)

    def lifted(self, plain: Callable, free: np.ndarray) -> np.ndarray:
        """Return coordinates `(p,)` away from bounds: there no slope leads back, so no replicate may start there."""
        bounded = np.isfinite(self.low) | np.isfinite(self.high)
        free = np.where(self.both, np.clip(free, -FARTHEST, FARTHEST), free)
        away = np.where(self.both & (free > 0), -1.0, 1.0)
        for _ in range(int(FARTHEST)):
            values, slopes = self.to_plain(free)
            seen = np.abs(plain(values)[1] * slopes).max(axis=0)
            lost = bounded & ~(seen >= SEEN_SHARE)
            if not lost.any():
                break
            free = free + np.where(lost, away, 0.0)
        return free

    def spread(self, found: np.ndarray, replicates: np.ndarray, num_clusters: int) -> np.ndarray:
        """Return replicates `(r, p)` spread for few points about `found`, inside of the bounds.

        Coefficients and exponents of a law go together along curves that are straight in the logarithms of the former.
        """
        if not len(replicates):
            return replicates
        everything = np.vstack([found[None], replicates])
        with np.errstate(invalid="ignore"):
            least, most = np.abs(everything).min(axis=0), np.abs(everything).max(axis=0)
            one_sign = (np.sign(everything) == np.sign(found)).all(axis=0) & (least > SAME_SIZE * most)
        sign = np.where(one_sign, np.sign(found), 1.0)
        logs = np.where(one_sign, np.log(np.where(one_sign, np.abs(everything), 1.0)), everything)
        moved = spread(logs[0], logs[1:], num_clusters, len(found))
        with np.errstate(over="ignore"):
            moved = np.where(one_sign, sign * np.exp(np.where(one_sign, moved, 0.0)), moved)
        return np.clip(moved, self.low, self.high)
