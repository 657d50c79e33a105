"""What both fits of a compute-optimal frontier end in: power laws of N and D in the compute budget."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bigjax.science.laws.points import Conventions, Excluded
from bigjax.science.laws.robust import interval

BEYOND = 1e9
"""The log of a size beyond all others, up or down: an infinity with which sums still have a sign."""

NAMES = ("N_coefficient", "N_exponent", "D_coefficient", "D_exponent")


@dataclass(frozen=True)
class FrontierFit:
    """`N_opt = N_coefficient * C^N_exponent` and `D_opt` likewise.

    Attributes:
        centre: log C at which `theta` and the replicates hold their levels.
        theta: `(4,)` log N_opt at the centre, N_exponent, log D_opt at the centre, D_exponent; replicates `(r, 4)`.
        flops, params, tokens, loss: `(k,)` the minima that the power laws go through.
        parabolas: `(k, 4)` mean log N and coefficients 1, z, z² of each isoFLOP curve; empty for an envelope.
        interpolate, window: how the minima of isoFLOP curves were found, see `fit_isoflop`.
        objective: sum of squared residuals, of the parabolas (loss) or of the envelope's log N.
    """

    centre: float
    theta: np.ndarray
    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    objective: float
    n_points: int
    converged: bool
    conventions: Conventions
    excluded: tuple[Excluded, ...]
    warnings: tuple[str, ...]
    replicates: np.ndarray = field(repr=False)
    parabolas: np.ndarray = field(repr=False)
    interpolate: Literal["parabola", "cubic", "akima"] = "parabola"
    window: float | None = None

    @property
    def parameters(self) -> dict[str, float]:
        return dict(zip(NAMES, map(float, self._coefficients(self.theta)), strict=True))

    @property
    def ci95(self) -> dict[str, list[float] | None]:
        """The 95 % interval of each parameter; an end that the points do not bound is infinite, or 0."""
        n, a, d, b = self._coefficients(self.replicates.T)
        ends = interval(n, 0.0), interval(_unbounded(a)), interval(d, 0.0), interval(_unbounded(b))
        return dict(zip(NAMES, ends, strict=True))

    def _coefficients(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        n, a, d, b = theta
        with np.errstate(over="ignore"):
            return np.exp(n - a * self.centre), a, np.exp(d - b * self.centre), b


def _unbounded(exponents: np.ndarray) -> np.ndarray:
    """Return the exponents, those to which a size of `BEYOND` led as infinite."""
    return np.where(np.abs(exponents) > 1e-4 * BEYOND, np.copysign(np.inf, exponents), exponents)


def frontier_lines(log_flops: np.ndarray, log_params: np.ndarray, log_tokens: np.ndarray, centre: float) -> np.ndarray:
    """Return theta `(..., 4)` of least-squares lines through minima `(..., k)`, NaN where fewer than 2 are known."""
    known = np.isfinite(log_params) & np.isfinite(log_tokens)
    count = known.sum(axis=-1)
    x = np.where(known, log_flops, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = x.sum(axis=-1) / count
        deviation = np.where(known, log_flops - mean[..., None], 0.0)
        squares = (deviation**2).sum(axis=-1)
        theta = []
        for values in (log_params, log_tokens):
            values = np.where(known, values, 0.0)
            slope = (deviation * values).sum(axis=-1) / np.where(squares > 1e-9, squares, np.nan)
            theta += [values.sum(axis=-1) / count + slope * (centre - mean), slope]
    return np.stack(theta, axis=-1)
