"""Pictures of a study of scaling laws. Only matplotlib's object interface is used."""

from pathlib import Path
from typing import Any

import numpy as np

from bigjax.science.laws.compute_optimal import compute_optimal
from bigjax.science.laws.diagnostics import pictures
from bigjax.science.laws.diagnostics.residuals import HIGH
from bigjax.science.laws.formula.fit import FormulaFit
from bigjax.science.laws.frontier import FrontierFit
from bigjax.science.laws.interpolate import curve
from bigjax.science.laws.isoflop import within
from bigjax.science.laws.parametric import ParametricFit
from bigjax.science.laws.points import Points
from bigjax.science.laws.study import Study

ACCENT, SECOND, GREY = "#c0392b", "#1f4e79", "0.55"


def plot_study(study: Study, folder: str | Path) -> list[str]:
    """Draw what the study has into `folder`, each picture as PNG and SVG, and return their names."""
    folder = Path(folder)
    drawn = {"frontier": _frontier}
    if study.isoflop:
        drawn["isoflop"] = _isoflop
    if study.parametric:
        # A law without an optimum has levels that are no contours around anything.
        drawn |= {"contours": _contours} if study.optimal.get("parametric") else {}
        drawn["residuals"] = _residuals
    if study.diagnosed:
        drawn["diagnostics"] = _diagnostics
    for name, draw in drawn.items():
        figure = _figure((9.6, 4.4) if name in ("isoflop", "residuals", "diagnostics") else (7.2, 4.8))
        draw(figure, study)
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return list(drawn)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(axes: Any, **labels: str) -> None:
    axes.set(**labels)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(values: np.ndarray, name: str) -> Any:
    """Return what maps values, on a logarithmic scale, to the colours of a map without its palest end."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    low, high = values.min(), values.max()
    if np.isclose(low, high):
        low, high = low / 2, high * 2
    return ScalarMappable(LogNorm(low, high), ListedColormap(colormaps[name](np.linspace(0.0, 0.88, 256))))


def _reach(points: Points, beyond: float = 30) -> np.ndarray:
    return np.geomspace(points.flops.min(), points.flops.max() * beyond, 80)


def _frontier(figure: Any, study: Study) -> None:
    """Loss against compute: curves and runs coloured by size, with the frontier and its interval."""
    points, axes = study.points, figure.subplots()
    colours = _colours(points.params, "viridis")
    model = points.flop_model()
    for size, of_run in zip(points.params, points.curves, strict=False):
        work = model.coefficient * size**model.size_exponent * of_run.tokens
        axes.plot(work, of_run.loss, color=colours.to_rgba(size), linewidth=0.7, alpha=0.6)
    axes.scatter(
        points.flops,
        points.loss,
        c=colours.to_rgba(points.params),
        s=22,
        edgecolor="white",
        linewidth=0.4,
        zorder=3,
        label="runs",
    )
    if study.parametric and study.optimal.get("parametric"):
        flops = _reach(points)
        best = compute_optimal(study.parametric, flops)
        inside = flops <= points.flops.max()
        losses = np.array([row.loss for row in best], float)
        axes.plot(flops[inside], losses[inside], color=ACCENT, linewidth=2, label="compute-optimal, parametric law")
        axes.plot(
            flops[~inside], losses[~inside], color=ACCENT, linewidth=2, linestyle=(0, (4, 2)), label="extrapolated"
        )
        _band(axes, flops, losses, [row.ci95["loss"] for row in best], ACCENT, 0.18)
        axes.axhline(study.parametric.E, color=GREY, linewidth=0.9, linestyle=":")
        axes.annotate(
            f"E = {study.parametric.E:.3g}",
            (0.01, study.parametric.E),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(2, 3),
            color=GREY,
            fontsize=8,
        )
    for fit, marker, label in (
        (study.isoflop, "*", "isoFLOP minima"),
        (study.envelope, None, "envelope of the curves"),
    ):
        if fit is None:
            continue
        if marker:
            axes.plot(
                fit.flops, fit.loss, marker, color=SECOND, markersize=11, markeredgecolor="white", label=label, zorder=4
            )
        else:
            axes.plot(fit.flops, fit.loss, color=SECOND, linewidth=1.4, label=label)
    axes.set(xscale="log", yscale="log")
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, points.flops.min() / 1.5), max(right, points.flops.max() * 1.5))
    _plain_log_ticks(axes.yaxis)
    curves = np.concatenate([points.loss, *(each.loss[len(each.loss) // 10 :] for each in points.curves)])
    low = min(points.loss.min(), study.parametric.E if study.parametric else np.inf)
    axes.set_ylim(low * 0.985, curves.max() * 1.03)
    _axes(axes, xlabel="training compute C (FLOPs)", ylabel="loss (nats per token)", title="Loss against compute")
    figure.colorbar(colours, ax=axes, label="parameters N", pad=0.02)
    axes.legend(frameon=False, fontsize=8)


def _isoflop(figure: Any, study: Study) -> None:
    """The parabola of each budget with its minimum, and the power law of the minima."""
    points, fit = study.points, study.isoflop
    assert fit is not None
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    colours = _colours(fit.flops, "plasma")
    nearest = np.abs(np.log(points.flops)[:, None] - np.log(fit.flops)).argmin(axis=1)
    for index, flops in enumerate(fit.flops):
        rows = (nearest == index) & (np.abs(np.log(points.flops / flops)) < 0.1)
        colour = colours.to_rgba(flops)
        tried = np.log(points.params[rows])
        log_size = np.linspace(tried.min() - 0.16, tried.max() + 0.16, 60)
        used = points.take(rows)
        if fit.window is not None:
            used = used.take(within(used, np.zeros(len(used), int), fit.window))
        through = curve(np.log(used.params), used.loss, used.weight, fit.interpolate, log_size)
        left.plot(np.exp(log_size), through, color=colour, linewidth=1.2, alpha=0.8)
        left.plot(points.params[rows], points.loss[rows], "o", color=colour, markersize=4.2, markeredgewidth=0)
        left.plot(
            fit.params[index], fit.loss[index], "*", color=colour, markersize=13, markeredgecolor="black", zorder=4
        )
    left.set(xscale="log")
    _axes(left, xlabel="parameters N", ylabel="loss (nats per token)", title="IsoFLOP curves")
    figure.colorbar(colours, ax=left, label="compute C (FLOPs)", pad=0.02)
    flops = _reach(points)
    _power_law(right, fit, flops, "isoFLOP", SECOND)
    right.scatter(fit.flops, fit.params, marker="*", s=110, c=colours.to_rgba(fit.flops), edgecolor="black", zorder=4)
    if study.optimal.get("parametric") and study.parametric:
        sizes = [row.N for row in compute_optimal(study.parametric, flops)]
        right.plot(flops, sizes, color=ACCENT, linewidth=1.3, linestyle=(0, (4, 2)), label="parametric law")
    right.set(xscale="log", yscale="log")
    _axes(right, xlabel="training compute C (FLOPs)", ylabel="compute-optimal N", title="Best size")
    right.legend(frameon=False, fontsize=8, loc="upper left")


def _power_law(axes: Any, fit: FrontierFit, flops: np.ndarray, name: str, colour: str) -> None:
    best = compute_optimal(fit, flops)
    label = f"{name}: N ∝ C$^{{{fit.parameters['N_exponent']:.3f}}}$"
    sizes = np.array([row.N for row in best])
    axes.plot(flops, sizes, color=colour, linewidth=1.8, label=label)
    _band(axes, flops, sizes, [row.ci95["N"] for row in best], colour, 0.15)


def _band(axes: Any, x: np.ndarray, y: np.ndarray, bands: list[list[float] | None], colour: str, alpha: float) -> None:
    """Fill the interval of positive `y`; an end that is far off, or nowhere, leaves the picture."""
    if all(bands):
        low, high = np.array(bands, float).T
        off = (y.max() / y.min()) * 1e3
        ends = np.maximum(low, y / off), np.minimum(high, y * off)
        limits = y.min() / 30, y.max() * 30
        axes.fill_between(x, *ends, color=colour, alpha=alpha, linewidth=0, label="95 % interval")
        if (low < limits[0]).any() or (high > limits[1]).any():
            axes.set_ylim(max(limits[0], low.min()), min(limits[1], high.max()))


def _contours(figure: Any, study: Study) -> None:
    """Contours of the parametric law over compute and size, with runs and the efficient frontier."""
    points, law = study.points, study.parametric
    assert law is not None
    axes, model = figure.subplots(), points.flop_model()
    flops = np.geomspace(points.flops.min() / 2, points.flops.max() * 30, 160)
    sizes = np.geomspace(points.params.min() / 2, points.params.max() * 6, 160)
    grid_c, grid_n = np.meshgrid(flops, sizes)
    tokens = grid_c / (model.coefficient * grid_n**model.size_exponent)
    with np.errstate(over="ignore"):
        loss = law.predict(grid_n.ravel(), tokens.ravel()).reshape(grid_n.shape)
    low, high = loss.min(), np.quantile(points.loss, 0.98) * 1.15
    levels = law.E + np.geomspace(max(low - law.E, 1e-3 * law.E), max(high - law.E, 2e-3 * law.E), 15)
    filled = axes.contourf(grid_c, grid_n, loss, levels=levels, cmap="viridis_r", extend="max", alpha=0.9)
    lines = axes.contour(grid_c, grid_n, loss, levels=levels, colors="white", linewidths=0.6, alpha=0.8)
    axes.clabel(lines, levels[::2], fmt="%.3g", fontsize=7, inline=False)
    axes.scatter(
        points.flops, points.params, s=16, color="white", edgecolor="black", linewidth=0.6, zorder=3, label="runs"
    )
    if study.optimal.get("parametric"):
        best = compute_optimal(law, flops)
        best_sizes = np.array([row.N for row in best])
        axes.plot(flops, best_sizes, color=ACCENT, linewidth=2, label="compute-optimal")
        _band(axes, flops, best_sizes, [row.ci95["N"] for row in best], ACCENT, 0.25)
    axes.set(xscale="log", yscale="log", xlim=flops[[0, -1]], ylim=sizes[[0, -1]])
    _axes(
        axes,
        xlabel="training compute C (FLOPs)",
        ylabel="parameters N",
        title=rf"$L = {_formula(law.E, 3)} + {_formula(law.A, 4)}/N^{{{law.alpha:.3g}}}"
        rf" + {_formula(law.B, 4)}/D^{{{law.beta:.3g}}}$",
    )
    axes.grid(False)
    figure.colorbar(filled, ax=axes, label="loss (nats per token)", pad=0.02, format="%.3g", ticks=levels[::2])
    axes.legend(fontsize=8, loc="upper left", framealpha=0.85)


def _formula(value: float, digits: int) -> str:
    """Return a number as a formula has it: 9.42 times a power of ten, not 9.42e+04."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa


def _residuals(figure: Any, study: Study) -> None:
    """How far the runs are from the law, against compute and tokens per parameter, and those predicted unseen."""
    points, law, held = study.points, study.parametric, study.extrapolation
    assert law is not None
    left, right = figure.subplots(1, 2, sharey=True)
    colours, percent = _colours(points.params, "viridis"), 100 * np.expm1(law.residuals)
    noise = 1.96 * np.sqrt(np.mean(percent**2))
    for axes, x, label in (
        (left, points.flops, "training compute C (FLOPs)"),
        (right, points.tokens / points.params, "tokens per parameter D / N"),
    ):
        axes.axhspan(-noise, noise, color=GREY, alpha=0.12, linewidth=0, label="±1.96 rms")
        axes.axhline(0, color=GREY, linewidth=0.9)
        axes.scatter(x, percent, c=colours.to_rgba(points.params), s=24, edgecolor="white", linewidth=0.4, zorder=3)
        axes.set_xlim(x.min() / 1.5, x.max() * 1.5)  # before the scale, which refuses the limits of a single budget
        axes.set_xscale("log")
        if x.max() < 10 * x.min():
            _plain_log_ticks(axes.xaxis)
        _axes(axes, xlabel=label)
    if held is not None:
        work = points.flop_model()
        flops = work.coefficient * held.params**work.size_exponent * held.tokens
        error = -100 * np.expm1(held.log_error)
        left.scatter(
            flops,
            error,
            s=48,
            facecolor="none",
            edgecolor=ACCENT,
            linewidth=1,
            zorder=4,
            label="predicted unseen (held out)",
        )
    left.set(ylabel="measured above the law (%)")
    left.legend(frameon=False, fontsize=8)
    figure.suptitle("Residuals of the parametric law")
    figure.colorbar(colours, ax=right, label="parameters N", pad=0.02)


def _diagnostics(figure: Any, study: Study) -> None:
    """Residuals of one's own law, or of the parametric one, against each column, and its leverages."""
    method = study.diagnosed
    assert method is not None
    fit, found = study.fits()[method], study.checks[f"diagnostics_{method}"]
    assert isinstance(fit, ParametricFit | FormulaFit)
    hat = {row["point"]: row["leverage"] for row in found["leverage"]}
    points = study.points
    columns = {"N": points.params, "D": points.tokens, "C": points.flops}
    if isinstance(fit, FormulaFit):
        columns |= {name: points.columns()[name] for name in fit.variables}
    limit = HIGH * len(fit.parameters) / len(points)
    pictures.draw(figure, fit.residuals, columns, np.array([hat[name] for name in points.names]), limit)
    figure.suptitle(f"Residuals and leverage: {method}")


def _plain_log_ticks(axis: Any) -> None:
    """Label a logarithmic axis of less than a decade with plain numbers."""
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
