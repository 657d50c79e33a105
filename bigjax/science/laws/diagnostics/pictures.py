"""Pictures of residuals against each column, and of leverage."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def draw(figure: Any, residuals: np.ndarray, columns: Mapping[str, np.ndarray], hat: np.ndarray, limit: float) -> None:
    """Draw residuals `(n,)` in per cent against each column `(n,)`, and leverages `(n,)` with their limit."""
    shown = {name: values for name, values in columns.items() if (values > 0).all() and np.ptp(values) > 0}
    axes = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    percent = 100 * residuals
    for place, (name, values) in zip(axes, shown.items(), strict=False):
        place.axhline(0, color="0.55", linewidth=0.9)
        place.scatter(values, percent, s=18, color="#1f4e79", edgecolor="white", linewidth=0.4)
        place.set_xlim(values.min() / 1.3, values.max() * 1.3)
        place.set(xscale="log", xlabel=name)
    axes[0].set(ylabel="measured above the law (%)")
    axes[-1].axvline(limit, color="#c0392b", linewidth=0.9, linestyle="--", label="high")
    axes[-1].scatter(hat, percent, s=18, color="#1f4e79", edgecolor="white", linewidth=0.4)
    axes[-1].set(xlabel="leverage", xlim=(0, 1.05 * max(hat.max(), limit)))
    axes[-1].legend(frameon=False, fontsize=8)
    for place in axes:
        place.grid(alpha=0.25, linewidth=0.6)
        place.spines[["top", "right"]].set_visible(False)
