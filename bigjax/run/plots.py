"""Pictures of runs. Matplotlib is imported when the first one is drawn, and only its object interface is used."""

import warnings
from collections.abc import Sequence

import numpy as np

from bigjax.errors import UserError
from bigjax.paths import AnyPath, as_path, on_disk
from bigjax.run.rows import read_rows


def plot_loss(metrics_jsonl: str | AnyPath, out: str | AnyPath) -> None:
    """Draw the loss curve of the run that wrote `metrics_jsonl` to the picture `out` (its suffix says the format).

    Raises:
        UserError: the file has no row with `train/loss`.
    """
    metrics_jsonl, out = as_path(metrics_jsonl), as_path(out)
    train, evaluation = _curve(metrics_jsonl, "train/loss"), _curve(metrics_jsonl, "eval/loss")
    if not len(train):
        raise UserError(f"{metrics_jsonl} has no row with train/loss to plot")
    title = metrics_jsonl.absolute().parent.name
    if len(evaluation):
        title += f": final eval loss {evaluation[-1][1]:.3f}"
    draw_loss(out, train, evaluation, title)


def draw_loss(
    out: str | AnyPath,
    train: Sequence[tuple[int, float]],
    evaluation: Sequence[tuple[int, float]] = (),
    title: str = "",
) -> None:
    """Draw a loss curve to the picture `out`: the pairs of step and loss in `train`, and those in `evaluation`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curve, scores = (np.asarray(points, float).reshape(-1, 2) for points in (train, evaluation))
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    smooth = smoothed(curve[:, 1], reach=len(curve) // 50)
    axes.plot(*curve.T, color="tab:blue", alpha=0.3, linewidth=0.7, label="train")
    axes.plot(curve[:, 0], smooth, color="tab:blue", linewidth=1.6, label="train, smoothed")
    if len(scores):
        axes.plot(*scores.T, "o-", color="tab:orange", markersize=4, linewidth=1, label="eval")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(title, parse_math=False)  # a name is no formula, whatever it holds
    # The first steps would otherwise squeeze the part one looks at into the lower edge.
    both = np.concatenate([curve[:, 1], scores[:, 1]])
    shown = np.concatenate([smooth[len(smooth) // 50 :], scores[:, 1]])
    if np.isfinite(shown).any():
        low, high = np.min(both[np.isfinite(both)]), np.max(shown[np.isfinite(shown)])
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    axes.grid(alpha=0.3)
    axes.legend()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box in the title is good enough
        with on_disk(out) as place:
            figure.savefig(place)


def smoothed(values: np.ndarray, reach: int) -> np.ndarray:
    """Return the mean of each value and up to `reach` neighbours on either side, leaving out what is not finite.

    Near the start both sides shrink alike: a one-sided mean would lag behind the steep part of the curve. Near the end,
    where the curve is flat, only the later side shrinks. Where nothing is finite the mean is NaN.

    Args:
        values: `(n,)`.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    here = np.arange(len(values))
    sides = np.minimum(here, reach)
    first, last = here - sides, np.minimum(here + sides, len(values) - 1) + 1
    counted = counts[last] - counts[first]
    return np.where(counted, (sums[last] - sums[first]) / np.maximum(counted, 1), np.nan)


def _curve(metrics_jsonl: str | AnyPath, name: str) -> list[tuple[int, float]]:
    """Return steps and values of one metric."""
    return [(row["step"], row[name]) for row in read_rows(metrics_jsonl) if name in row]
