"""Fit scaling laws to finished runs or to a CSV file, with intervals, checks and pictures.

The methods are those of Hoffmann et al. 2022: envelope (section 3.1), isoflop (3.2) and parametric (3.3). A CSV has the
columns params,tokens,loss and, where known, flops,weight,seed,diverged; runs of one size and length are seeds.
"""

import math

from absl import flags

from bigjax.errors import UserError
from bigjax.paths import as_path, on_disk

from . import cli

EXAMPLES = (
    "python -m experiments.fit --runs='runs/scaling-*' --out=fits/scaling",
    "python -m experiments.fit --csv=runs.csv --method=isoflop --params=non_embedding --out=fits/isoflop",
    "python -m experiments.fit --csv=runs.csv --optimal_at=1e21,1e24 --next_budget=1e21 --out=fits/next",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("runs", None, "glob of run folders", flag_values=flag_values)
    flags.DEFINE_string("csv", None, "CSV file of points, instead of --runs", flag_values=flag_values)
    flags.DEFINE_enum(
        "method", "all", ("parametric", "isoflop", "envelope", "all"), "what to fit", flag_values=flag_values
    )
    flags.DEFINE_string("out", None, "the folder to write", flag_values=flag_values)
    flags.DEFINE_enum(
        "params",
        "total",
        ("total", "non_embedding"),
        "which parameters are counted; says what the column of a CSV holds",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "flops",
        None,
        ("6ND", "recorded"),
        "6ND, or as recorded by the runs or the CSV; if absent, recorded for a CSV with the column flops, else 6ND",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "recompute", False, "count the forward pass twice: a third more FLOPs", flag_values=flag_values
    )
    flags.DEFINE_float("delta", 1e-3, "delta of the Huber loss", flag_values=flag_values)
    flags.DEFINE_integer("bootstrap", 400, "bootstrap replicates", 20, flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "seed of the bootstrap", 0, flag_values=flag_values)
    flags.DEFINE_list("optimal_at", None, "FLOPs to find the optimum at, decades if absent", flag_values=flag_values)
    flags.DEFINE_float("next_budget", None, "FLOPs to spend on the next runs", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Write fit.json, fit.md and the pictures, and print the tables."""
    if (flag_values.runs is None) == (flag_values.csv is None):
        raise UserError("one of --runs=GLOB and --csv=FILE must be given")
    out = as_path(cli.required(flag_values, "out"))
    flops = [_flops(text) for text in flag_values.optimal_at or ()]
    from bigjax.run.json_files import write_json, write_text
    from bigjax.science.laws import plots as fits_plots
    from bigjax.science.laws import report as fits_report
    from bigjax.science.scaling_laws import read_csv, read_runs

    counted = {"params": flag_values.params, "flops": flag_values.flops, "recompute": flag_values.recompute}
    points = read_runs(flag_values.runs, **counted) if flag_values.runs else read_csv(flag_values.csv, **counted)
    found = fits_report.study(
        points,
        fits_report.METHODS if flag_values.method == "all" else (flag_values.method,),
        delta=flag_values.delta,
        bootstrap=flag_values.bootstrap,
        seed=flag_values.seed,
        flops=flops,
        next_budget=flag_values.next_budget,
    )
    table = fits_report.to_markdown(found)
    try:
        with on_disk(out) as place:
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / "fit.json", fits_report.to_json(found))
            write_text(place / "fit.md", table)
            pictures = fits_plots.plot_study(found, place)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    print(table)
    print(f"wrote fit.json, fit.md and {', '.join(pictures)} (.png, .svg) in {out}")


def _flops(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--optimal_at={text} is not a number of FLOPs above 0")
    return value


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config=False)
