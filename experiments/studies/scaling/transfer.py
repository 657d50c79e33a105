"""Where is the best learning rate of each width, by the standard parametrization and by muP, and how does it move?

Reads the runs of configs/sweeps/mup_transfer.py. The best rate of a width is the lowest point of the parabola through
the best run and its two neighbours, in the logarithm of the rate; its power of the width is a line through the widths,
with Student's interval of 95 %. Runs that diverged or have not finished are left out, and named.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from bigjax.errors import UserError

from ... import cli

EXAMPLES = ("python -m experiments.studies.scaling.transfer --runs='runs/mup_transfer/*' --out=runs/transfer",)


class Best(NamedTuple):
    """The best learning rate of one width and the loss there, by the parabola."""

    width: int
    lr: float
    loss: float


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("runs", None, "glob of run folders", flag_values=flag_values)
    flags.DEFINE_string("out", None, "the folder to write", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Write transfer.json and transfer.png, and print the best rates and their exponents."""
    pattern, out = cli.required(flag_values, "runs"), Path(cli.required(flag_values, "out"))
    from bigjax.run.json_files import write_json
    from bigjax.science.report import runs as report_runs

    losses: dict[str, dict[int, dict[float, float]]] = {}
    for run in report_runs.read(pattern):
        loss = run.number("eval_loss")
        if run.state != "finished" or loss is None:
            print(f"left out: {run.name}, {run.state}")
            continue
        by_width = losses.setdefault(run.config["model.parametrization"], {})
        by_width.setdefault(run.config["model.d_model"], {})[run.config["optim.lr"]] = loss
    if not losses:
        raise UserError(f"--runs={pattern}: none of them has finished")
    bests = {name: [best(width, of) for width, of in sorted(by_width.items())] for name, by_width in losses.items()}
    report: dict[str, Any] = {}
    for name, found in bests.items():
        exponent, half = exponent_of(found)
        print(f"{name}: the best rate changes as width^{exponent:.2f} [{exponent - half:.2f}, {exponent + half:.2f}]")
        for one in found:
            print(f"  width {one.width:>4}  best rate 2^{np.log2(one.lr):.2f}  loss {one.loss:.3f}")
        ci95 = [exponent - half, exponent + half]
        report[name] = {"exponent": exponent, "ci95": ci95, "best": [one._asdict() for one in found]}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "transfer.json", report)
        _draw(losses, bests, out / "transfer.png")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error


def best(width: int, losses: dict[float, float]) -> Best:
    """Return the lowest point of the parabola through the lowest loss and its neighbours, in log2 of the rate.

    Raises:
      UserError: the lowest loss is at the edge of the rates tried.
    """
    rates, values = map(np.array, zip(*sorted(losses.items()), strict=True))
    lowest = int(np.argmin(values))
    if not 0 < lowest < len(values) - 1:
        raise UserError(f"width {width}: the lowest loss is at the edge of the rates tried ({rates[lowest]:.3g})")
    near = slice(lowest - 1, lowest + 2)
    # Centred, so that rates in a geometric row give a well-conditioned parabola.
    x = np.log2(rates[near]) - np.log2(rates[lowest])
    curvature, slope, constant = np.polyfit(x, values[near], 2)
    at = -slope / (2 * curvature)
    return Best(width, float(rates[lowest] * 2**at), float(constant + slope * at / 2))


def exponent_of(found: Sequence[Best]) -> tuple[float, float]:
    """Return the exponent of the best rate in the width, and half the width of its 95 % interval.

    Raises:
      UserError: fewer than three widths, through which no interval can be drawn.
    """
    from scipy import stats

    if len(found) < 3:
        raise UserError(f"an exponent with an interval needs at least 3 widths, not {len(found)}")
    line: Any = stats.linregress(np.log([one.width for one in found]), np.log([one.lr for one in found]))
    return float(line.slope), float(stats.t.ppf(0.975, len(found) - 2) * line.stderr)


def _draw(losses: dict[str, dict[int, dict[float, float]]], bests: dict[str, list[Best]], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(losses), 4), layout="constrained")
    panels = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
    for panel, (name, by_width) in zip(panels, sorted(losses.items(), reverse=True), strict=True):
        colours = colormaps["viridis"](np.linspace(0, 0.85, len(by_width)))
        for colour, (width, of), one in zip(colours, sorted(by_width.items()), bests[name], strict=True):
            panel.plot(*zip(*sorted(of.items()), strict=True), "o-", color=colour, markersize=3, label=f"width {width}")
            panel.plot(one.lr, one.loss, "*", color=colour, markersize=12)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("learning rate")
        panel.set_title("muP" if name == "mup" else name)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.axes[0].set_ylabel("held-out loss (nats per byte)")
    figure.savefig(path, dpi=120)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command `argv`, by default that of this process."""
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config=False, argv=argv)


if __name__ == "__main__":
    run()
