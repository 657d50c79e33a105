"""Whether a fit explains its points: better than a constant, and no worse than a curve that may bend either way.

A minimum can be found and be no law. Errors are compared as those of a Laplace distribution, the likelihood that a
Huber loss nearly maximises: n points whose absolute errors sum to S have the log-likelihood `-n log S` but for a
constant (Koenker and Machado 1999, section 3).
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05
"""A fit is no better than a constant unless chance makes one as good with less than this probability."""

RIVAL = float(np.log(1000))
"""By how much more the log-likelihood of another curve must be before it is believed."""

POWERS = np.geomspace(0.02, 4, 80)
"""Exponents tried, up and down; neighbours are 7 % apart."""

PATTERN, SMALL = 1e-3, 0.02
"""How seldom noise has a pattern that is believed, and the share of what y varies below which errors are no matter."""

ROUNDING = 1e-9
"""Errors of a logarithm below this are those of arithmetic, in which any pattern may be."""


def doubts(log_value: np.ndarray, residuals: np.ndarray, weight: np.ndarray, num_parameters: int) -> Iterator[str]:
    """Yield a sentence if a constant fits as well, for values `(n,)` and residuals `(n,)` of their logarithms.

    A likelihood ratio test with the parameters that a constant lacks as degrees of freedom; 2 / π makes it one of
    normal errors, whose absolute values sum to less than those of a Laplace distribution of their density at 0.
    """
    share = weight / weight.sum()
    order = np.argsort(log_value)
    middle = log_value[order][np.searchsorted(np.cumsum(share[order]), 0.5)]
    spread, left = share @ np.abs(log_value - middle), share @ np.abs(residuals)
    if left < ROUNDING:
        return
    ratio = 2 / np.pi * 2 * len(log_value) * np.log(max(spread, ROUNDING) / left)
    if ratio < stats.chi2.ppf(1 - SIGNIFICANT, num_parameters - 1):
        yield (
            f"the law explains nothing: a constant fits the points as well, its errors are {spread / left:.2g} times "
            "those of the law"
        )


def better_curve(
    x: np.ndarray, y: np.ndarray, residuals: np.ndarray, weight: np.ndarray, irreducible: bool
) -> Iterator[str]:
    """Yield a sentence if a curve that may bend either way fits much better than a power law.

    The logarithm of the law is convex in log x. It cannot level off at a ceiling: it ends as a straight line through
    points that do. The rivals are `c + a x^p` of any sign and a parabola in logarithms that opens downwards.
    """
    if len(np.unique(x)) < 5:
        return
    left, least = float(weight @ np.abs(residuals)), ROUNDING * weight.sum()
    threshold = RIVAL + (0 if irreducible else 1)  # a straight line has a parameter less (Akaike 1974)
    curved, constant, slope, power = _best_curve(x, y, weight)
    second, parabola = _parabola(np.log(x), np.log(y), weight)
    error = min(curved, parabola if second < 0 else np.inf)
    if left < least:
        return
    if len(y) * np.log(left / max(error, least)) < threshold:
        yield from _pattern(x, y, residuals)
        return
    share = f"which leaves {error / left:.2g} of the law's errors"
    if error < curved:
        yield f"y bends the other way than the law can, as towards a ceiling: so does a parabola in logarithms, {share}"
    elif slope < 0 and power < 0:
        yield f"y levels off at a ceiling of about {constant:.3g}, {share}: fit a law to what is missing from it"
    elif slope < 0 or constant < 0:
        rival = f"{constant:.3g} {slope:+.3g} (x / x_0)^{power:.2g}"
        yield f"y bends the other way than the law can: so does {rival}, {share}"
    elif not irreducible:
        yield f"y levels off at about {constant:.3g}, {share}: fit it with irreducible=True"


def _best_curve(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float, float, float]:
    """Return the absolute error of log y, c, a and p of the best `c + a (x / x_0)^p`, x_0 the geometric mean."""
    relative, scaled = np.sqrt(weight) / y, x / np.exp(np.log(x).mean())  # errors of y over y are those of log y
    best = (np.inf, 0.0, 0.0, 0.0)
    for power in (*-POWERS, *POWERS):
        design = np.stack([np.ones_like(x), scaled**power], axis=1)
        constant, slope = np.linalg.lstsq(relative[:, None] * design, relative * y)[0]
        curve = constant + slope * scaled**power
        if (curve > 0).all():
            error = float(weight @ np.abs(np.log(y / curve)))
            best = min(best, (error, float(constant), float(slope), float(power)))
    return best


def _pattern(x: np.ndarray, y: np.ndarray, residuals: np.ndarray) -> Iterator[str]:
    """Yield a sentence if errors, in order of x, are closer to their neighbours than noise is (von Neumann 1941)."""
    in_order, count = residuals[np.argsort(x, kind="stable")], len(x)
    if np.abs(residuals).mean() < SMALL * np.abs(np.log(y / np.median(y))).mean():
        return
    ratio = (np.diff(in_order) ** 2).sum() / (in_order**2).sum()
    if (ratio - 2) / np.sqrt(4 * (count - 2) / (count**2 - 1)) < stats.norm.ppf(PATTERN):
        yield "y does not follow the law: its errors are no noise, for neighbours err to the same side"


def _parabola(log_x: np.ndarray, log_y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Return the second coefficient and the absolute error of the least-squares parabola."""
    design, root = np.vander(log_x - log_x.mean(), 3), np.sqrt(weight)
    coefficients = np.linalg.lstsq(root[:, None] * design, root * log_y)[0]
    return float(coefficients[0]), float(weight @ np.abs(log_y - design @ coefficients))
