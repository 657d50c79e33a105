"""What the residuals of a fit still depend on, and which points pull it to themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

TREND = 0.01
"""A column is said to be left in the residuals if chance does so less often, all columns looked at together."""

HIGH = 2.0
"""Leverage above this multiple of the mean, p / n, is high (Hoaglin and Welsch 1978)."""

WILD = 5.0
"""Residuals beyond this multiple of their typical size, 1.48 times the median of their absolute values, count no more:
a robust fit leaves wild runs where they are, and one of them must not pass for a trend."""

EXACT = 1e-9
"""Residuals below this are those of arithmetic."""


def trends(residuals: np.ndarray, columns: Mapping[str, np.ndarray], weight: np.ndarray) -> list[dict[str, Any]]:
    """Return for each column `(n,)` how far a parabola in its logarithm explains the residuals `(n,)`.

    `p` is that of the F test of the parabola against a constant. The fit has taken degrees of freedom of its own, so
    that it is a little too large.
    """
    typical = float(np.median(np.abs(residuals))) / stats.norm.ppf(0.75)
    residuals = np.clip(residuals, -WILD * typical, WILD * typical)
    rows = []
    for name, values in columns.items():
        if (values <= 0).any() or not np.isfinite(values).all() or len(np.unique(values)) < 3:
            continue
        z = np.log(values)
        z = (z - z.mean()) / z.std()
        root = np.sqrt(weight)
        design = np.vander(z, 3, increasing=True)
        coefficients = np.linalg.lstsq(root[:, None] * design, root * residuals)[0]
        left = weight @ (residuals - design @ coefficients) ** 2
        total = weight @ (residuals - np.average(residuals, weights=weight)) ** 2
        freedom = len(residuals) - 3
        if freedom < 1 or total <= EXACT**2 * weight.sum():
            continue
        ratio = (total - left) / 2 / max(left / freedom, 1e-300)
        explained = float(1 - left / total)
        rows.append({"column": name, "explained": explained, "p": float(stats.f.sf(ratio, 2, freedom))})
    return rows


def leverage(
    residuals: np.ndarray, jacobian: np.ndarray, weight: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the leverage of each point, the highest first, with its residual over its expected size.

    It is the diagonal of W^½ J (J'WJ)⁻¹ J'W^½ for the Jacobian J `(n, p)`: how much of a point's own noise its fitted
    value follows. The residual is internally studentised, e / (s √(1 - h)).
    """
    root = np.sqrt(weight)
    length = np.linalg.norm(root[:, None] * jacobian, axis=0)
    left, sizes, _ = np.linalg.svd(root[:, None] * jacobian / np.where(length > 0, length, 1.0), full_matrices=False)
    hat = (left[:, sizes > 1e-10 * sizes.max()] ** 2).sum(axis=1)
    freedom = max(len(residuals) - jacobian.shape[1], 1)
    noise = np.sqrt(weight @ residuals**2 / freedom)
    with np.errstate(all="ignore"):
        studentised = root * residuals / (noise * np.sqrt(np.maximum(1 - hat, 0)))
    studentised = np.where((noise > EXACT) & (hat < 1 - 1e-9), studentised, np.nan)
    order = np.argsort(-hat, kind="stable")
    return [{"point": names[i], "leverage": float(hat[i]), "studentised": float(studentised[i])} for i in order]


def sentences(found: Sequence[Mapping[str, Any]], pulled: Sequence[Mapping[str, Any]], parameters: int):
    """Yield what a reader should know of trends and leverage."""
    left = [row for row in found if row["p"] < TREND / len(found)]
    for row in left:
        yield (
            f"residuals: {row['explained']:.0%} of their variance follows {row['column']} (p = {row['p']:.1g}): the "
            "law lacks something that depends on it"
        )
    if found and not left:
        yield f"residuals: no trend against {', '.join(row['column'] for row in found)}"
    limit = HIGH * parameters / len(pulled)
    if high := [row for row in pulled if row["leverage"] > limit]:
        shown = ", ".join(f"{row['point']} {row['leverage']:.2f}" for row in high[:5])
        more = f" and {len(high) - 5} more" if len(high) > 5 else ""
        yield f"leverage: above {limit:.2f} are {shown}{more}: the fit follows these points' own noise"
