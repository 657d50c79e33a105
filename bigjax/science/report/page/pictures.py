"""The charts of a report as PNG and SVG. Only matplotlib's object interface is used."""

import json
import textwrap
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.run.plots import smoothed
from bigjax.science.report.page.tables import label
from bigjax.science.report.summary import Report, Setting, ordered, shown

ACCENT, GREY = "#2563a8", "0.45"
VERDICT_COLOURS = {"better": "#1a7f4b", "worse": "#b3372f", "baseline": ACCENT}
MAX_SETTINGS = 31
"""Settings in the picture of the ablation: the baseline and the best of the others."""

MANY = 12
"""Values of a field beyond which cells would be too small to read."""

MANY_EVALUATIONS = 40
"""Points of a held-out curve beyond which markers would hide it, as on the page."""

MAX_MAPS = 6
"""Pairs of fields that get a heat map."""


def plot_report(report: Report, folder: str | Path) -> list[str]:
    """Draw what the report has into `folder`, each picture as PNG and SVG, and return their names."""
    folder = Path(folder)
    drawn: dict[str, tuple[tuple[float, float], Callable[[Any], None]]] = {}
    if any(len(curve) for run in report.runs for curve in run.curves.values()):
        drawn["loss_curves"] = ((8.4, 5.0), lambda axes: _curves(axes, report))
    if len(report.settings) > 1:
        drawn["ablation"] = (
            (8.4, 1.4 + 0.5 * min(len(report.settings), MAX_SETTINGS)),
            lambda axes: _ablation(axes, report),
        )
        for x, y in list(combinations([field.path for field in report.axes], 2))[:MAX_MAPS]:
            drawn[f"heat_map-{x}-{y}"] = ((6.4, 4.4), lambda axes, x=x, y=y: _heat_map(axes, report, x, y))
        if report.axes:
            drawn["parallel_coordinates"] = ((8.4, 4.2), lambda axes: _parallel(axes, report))
    for name, (size, draw) in drawn.items():
        _save(folder / name, size, draw)
    return list(drawn)


def best_over_rest(settings: list[Setting], wanted: dict[str, Any]) -> float:
    """Return the lowest mean loss of the settings with the wanted values; NaN if there is none."""
    fitting = [s.row.mean.value for s in settings if all(s.values[path] == value for path, value in wanted.items())]
    return min(fitting, default=float("nan"))


def _save(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box in a name is good enough
        figure.savefig(path.with_name(f"{path.name}.png"))
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _curves(axes: Any, report: Report) -> None:
    """Loss against tokens, seeds in the colour of their setting; dotted: held out."""
    from matplotlib import colormaps

    settings = {i: at for at, setting in enumerate(report.settings) for i in setting.runs}
    palette, listed, ends = colormaps["tab10" if len(report.settings) <= 10 else "viridis"], set(), []
    for i, run in enumerate(report.runs):
        at, scale, colour, name = settings.get(i), run.tokens_per_step or 1, "0.7", "left out"
        if at is not None:
            colour = palette(at if len(report.settings) <= 10 else at / len(report.settings))
            name = textwrap.shorten(label(report.settings[at]), 60)
        for metric, style in (("train/loss", "-"), ("eval/loss", ":")):
            step, _, loss = run.curves[metric].T
            loss = smoothed(loss, len(loss) // 50) if metric == "train/loss" else loss
            if not np.isfinite(loss).any():
                continue
            legend = name if name not in listed and len(listed) < 12 else None
            listed.add(name)
            marker = "." if metric == "eval/loss" and len(loss) <= MANY_EVALUATIONS else None
            axes.plot(step * scale, loss, style, color=colour, linewidth=1.2, marker=marker, label=legend)
            ends.append(loss[len(loss) // 50 :])
    values = np.concatenate(ends) if ends else np.empty(0)
    values = values[np.isfinite(values) & (values > 0)]
    axes.set(xlabel="tokens", ylabel=f"loss ({report.unit})")
    if len(values):
        axes.set_yscale("log")
        low, high = values.min(), np.quantile(values, 0.995)
        axes.set_ylim(low * 0.98, max(high, low) * 1.02)
        _plain(axes.yaxis)
        axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.25)
    axes.set_title("Training (line, smoothed) and held-out loss (dotted)", fontsize=10)


def _ablation(axes: Any, report: Report) -> None:
    chosen = report.settings[:MAX_SETTINGS]
    base = chosen[0].row.mean
    if base.low is not None and base.high is not None:
        axes.axvspan(base.low, base.high, color=ACCENT, alpha=0.08, linewidth=0)
    axes.axvline(base.value, color=ACCENT, linewidth=0.8, linestyle=":")
    for at, setting in enumerate(chosen):
        mean, y = setting.row.mean, len(chosen) - 1 - at
        colour = VERDICT_COLOURS.get(setting.row.verdict, GREY)
        if mean.low is not None and mean.high is not None:
            axes.plot([mean.low, mean.high], [y, y], color=GREY, linewidth=1.4)
        axes.plot(setting.losses, np.full(len(setting.losses), y - 0.18), ".", color=GREY, markersize=4)
        axes.plot(mean.value, y, "o", color=colour, markersize=7)
        axes.annotate(
            setting.row.verdict, (1.01, y), xycoords=("axes fraction", "data"), va="center", color=colour, fontsize=8
        )
    values = np.concatenate([setting.losses for setting in chosen])
    room = np.ptp(values) or 0.1
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, values.min() - room), min(high, values.max() + room))
    names = [label(setting).replace(", ", ",\n") for setting in reversed(chosen)]
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set(xlabel=f"{report.measure}: mean over seeds, 95 % interval", ylim=(-0.6, len(names) - 0.4))
    axes.grid(alpha=0.25, axis="x")


def _heat_map(axes: Any, report: Report, x: str, y: str) -> None:
    columns, rows = (ordered([setting.values[path] for setting in report.settings]) for path in (x, y))
    if max(len(columns), len(rows)) > MANY:
        return _points(axes, report, x, y)
    loss = np.array([[best_over_rest(report.settings, {x: a, y: b}) for a in columns] for b in rows])
    shown_map = axes.imshow(loss, origin="lower", aspect="auto", cmap="viridis")
    middle = np.nanmean([np.nanmin(loss), np.nanmax(loss)])
    for (j, i), value in np.ndenumerate(loss):
        if np.isfinite(value):
            axes.text(
                i, j, f"{value:.4f}", ha="center", va="center", color="black" if value > middle else "white", fontsize=8
            )
    for axis, values, name in ((axes.xaxis, columns, x), (axes.yaxis, rows, y)):
        axis.set_ticks(range(len(values)), [textwrap.shorten(shown(v), 24) for v in values], parse_math=False)
        axis.set_label_text(name)
    axes.figure.colorbar(shown_map, ax=axes, label=report.measure)
    return None


def _points(axes: Any, report: Report, x: str, y: str) -> None:
    """One point a setting, where a field was drawn from a range."""
    columns = [[setting.values[path] for setting in report.settings] for path in (x, y)]
    loss = [setting.row.mean.value for setting in report.settings]
    for values, scale in zip(columns, (axes.set_xscale, axes.set_yscale), strict=True):
        if _on_log_scale(ordered(values)):
            scale("log")
    points = [values if _are_numbers(values) else list(map(shown, values)) for values in columns]
    drawn = axes.scatter(*points, c=loss, s=46, edgecolor="white", linewidth=0.5)
    axes.set(xlabel=x, ylabel=y)
    axes.figure.colorbar(drawn, ax=axes, label=report.measure)


def _parallel(axes: Any, report: Report) -> None:
    """One line a counted run, each field scaled to the height of the picture."""
    from matplotlib import colormaps

    indices = [i for setting in report.settings for i in setting.runs]
    columns = [(field.path, [field.values[i] for i in indices]) for field in report.axes[:9]]
    losses = np.array([loss for setting in report.settings for loss in setting.losses])
    columns.append((report.measure, losses.tolist()))
    heights = []
    for at, (name, values) in enumerate(columns):
        height, ticks = _heights(values)
        heights.append(height)
        for place, text in ticks:
            box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            axes.annotate(
                text,
                (at, place),
                xytext=(5, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
                bbox=box,
                zorder=5,
                parse_math=False,
            )
        axes.axvline(at, color="0.6", linewidth=0.8)
        axes.annotate(name, (at, 1.04), ha="center", fontsize=8, annotation_clip=False)
    order = np.argsort(np.argsort(losses)) / max(len(losses) - 1, 1)
    for line, rank in zip(np.array(heights).T, order, strict=True):
        axes.plot(range(len(columns)), line, color=colormaps["viridis"](0.9 * (1 - rank)), linewidth=1.3, marker=".")
    axes.set(xlim=(-0.1, len(columns) - 0.5), ylim=(-0.04, 1.1))
    axes.axis("off")


def _heights(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return each value's place between 0 and 1, on a logarithmic scale where values are 8 times apart, and ticks."""
    different, numbers = ordered(values), _are_numbers(values)
    if numbers:
        scaled = [float(np.log(value)) if _on_log_scale(different) else float(value) for value in values]
    else:
        scaled = [float(different.index(value)) for value in values]
    low, width = min(scaled), (max(scaled) - min(scaled)) or 1.0
    places = [(value - low) / width for value in scaled]
    at = {json.dumps(value): place for value, place in zip(values, places, strict=True)}
    kept = different if len(different) <= 7 else [different[0], different[len(different) // 2], different[-1]]
    text = [f"{value:.4g}" if numbers else textwrap.shorten(shown(value), 20) for value in kept]
    return places, [(at[json.dumps(value)], name) for value, name in zip(kept, text, strict=True)]


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _on_log_scale(different: list[Any]) -> bool:
    return _are_numbers(different) and different[0] > 0 and different[-1] / different[0] >= 8


def _plain(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
