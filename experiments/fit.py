"""Fit scaling laws to finished runs or to a CSV file, with intervals, checks and pictures, and predict with them.

The methods of Hoffmann et al. 2022 are envelope (section 3.1), isoflop (3.2) and parametric (3.3). data_constrained is
the law of repeated data (Muennighoff et al. 2023), downstream that of accuracy, and --law is your own. A CSV has the
columns params,tokens,loss and, where known, flops,weight,seed,diverged,unique_tokens,accuracy; runs of one size and
length are seeds.
"""

import math
from pathlib import Path

from absl import flags

from bigjax.errors import UserError

from . import cli

EXAMPLES = (
    "python -m experiments.fit --runs='runs/scaling-*' --out=fits/scaling",
    "python -m experiments.fit --csv=runs.csv --method=isoflop --params=non_embedding --out=fits/isoflop",
    "python -m experiments.fit --csv=runs.csv --optimal_at=1e21,1e24 --next_budget=1e21 --out=fits/next",
    "python -m experiments.fit --csv=runs.csv --law='E + A/N**alpha + B/D**beta' --tie=alpha=beta --out=fits/own",
    "python -m experiments.fit --fit=fits/own --predict='N=7e9,D=2e12;C=1e24'",
)

NAMED = ("parametric", "isoflop", "envelope", "power", "data_constrained", "downstream")


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""

    def text(name: str, what: str) -> None:
        flags.DEFINE_string(name, None, what, flag_values=flag_values)

    def choice(name: str, default: str | None, values: tuple[str, ...], what: str) -> None:
        flags.DEFINE_enum(name, default, values, what, flag_values=flag_values)

    text("runs", "glob of run folders")
    text("csv", "CSV file of points, instead of --runs")
    text("fit", "folder of an earlier fit to predict with, instead of --runs and --csv")
    text("columns", "names in the CSV for the columns above, such as params=n_active,tokens=D")
    choice("method", "all", (*NAMED, "all"), "what to fit; all is each that the columns allow, power only by name")
    text("law", "your own law of the loss, instead of --method: N, D, C, U (unique tokens) and columns are variables")
    text("tie", "parameters of --law that equal others, such as alpha=beta")
    text("bounds", "least and most of parameters of --law, such as E=0:2,alpha=0:")
    text("start", "where parameters of --law start, such as alpha=0.1|0.3,E=1.5; a grid if absent")
    choice("error", "log", ("log", "absolute"), "whether --law errs in log loss or in loss")
    choice("objective", "huber", ("huber", "squares"), "how errors of --law count: Huber loss, or least squares")
    text("against", "another law, which is compared with --law, or with the parametric one, by held-out errors")
    text("base", "law of data seen once for data_constrained, as E=1.87,A=521,B=1488,alpha=0.353,beta=0.353")
    choice("link", "sigmoid", ("sigmoid", "exponential"), "how accuracy follows from loss in downstream")
    choice("x", "C", ("C", "N", "D"), "what the loss is a power of in power")
    choice("interpolate", "parabola", ("parabola", "cubic", "akima"), "the curve through an isoFLOP budget")
    flags.DEFINE_float(
        "window",
        None,
        "only sizes within this factor of a budget's best one, in isoFLOP curves",
        1.0,
        flag_values=flag_values,
    )
    text("predict", "what to predict, such as 'N=7e9,D=2e12;C=1e24'; accuracies, too, where they were fitted")
    text("out", "the folder to write")
    choice(
        "params",
        "total",
        ("total", "non_embedding"),
        "which parameters are counted; says what the column of a CSV holds",
    )
    choice(
        "flops",
        None,
        ("6ND", "recorded"),
        "6ND, or as recorded by the runs or the CSV; if absent, recorded for a CSV with the column flops, else 6ND",
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
    """Write fit.json, fit.md, law.json, the page and the pictures, and print the tables; or predict with a fit."""
    given = [name for name in ("runs", "csv", "fit") if flag_values[name].value is not None]
    if len(given) != 1:
        raise UserError("one of --runs=GLOB, --csv=FILE and --fit=FOLDER must be given")
    from bigjax.science.laws.formula import predictions

    asked = predictions.read(flag_values.predict) if flag_values.predict is not None else []
    if flag_values.fit is not None:
        _predict_only(flag_values, asked)
        return
    out = Path(cli.required(flag_values, "out"))
    flops = [_flops(text) for text in flag_values.optimal_at or ()]
    from bigjax.run.json_files import write_json, write_text
    from bigjax.science.laws import plots as fits_plots
    from bigjax.science.laws import report as fits_report
    from bigjax.science.laws import study as fits_study
    from bigjax.science.laws.diagnostics import page
    from bigjax.science.laws.formula import stored

    choices = _choices(flag_values)
    points = _points(flag_values, choices)
    found = fits_study.study(
        points,
        _methods(flag_values, points),
        delta=flag_values.delta,
        bootstrap=flag_values.bootstrap,
        seed=flag_values.seed,
        flops=flops,
        next_budget=flag_values.next_budget,
        choices=choices,
        needed=None if flag_values.method == "all" else flag_values.method,
    )
    table = fits_report.to_markdown(found)
    foretold = predictions.predict(stored.laws_of(found), asked)
    if foretold:
        table += "\n" + predictions.to_markdown(foretold)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "fit.json", fits_report.to_json(found) | {"predictions": predictions.to_json(foretold)})
        write_text(out / "fit.md", table)
        stored.save(found, out)
        pictures = fits_plots.plot_study(found, out)
        page.write(table, pictures, out, f"Scaling laws of {points.conventions.source}")
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    print(table)
    print(f"wrote fit.json, fit.md, law.json, index.html and {', '.join(pictures)} (.png, .svg) in {out}")


def _predict_only(flag_values: flags.FlagValues, asked) -> None:
    """Print what the laws of an earlier fit say."""
    from bigjax.science.laws.formula import predictions, stored

    if not asked:
        raise UserError("--fit=FOLDER needs --predict, such as --predict='N=7e9,D=2e12;C=1e24'")
    for name in ("law", "columns", "out", "against"):
        if flag_values[name].value is not None:
            raise UserError(f"--{name} has no use with --fit, whose laws are fitted already: leave it out")
    law = stored.load_fit(flag_values.fit, None if flag_values.method == "all" else flag_values.method)
    print(predictions.to_markdown(predictions.predict({law.method: law}, asked)), end="")


def _choices(flag_values: flags.FlagValues):
    """Return how the laws are to be fitted.

    Raises:
        UserError: a flag of --law without it, or a text that cannot be read.
    """
    from bigjax.science.laws.formula import options
    from bigjax.science.laws.formula.law import Law
    from bigjax.science.laws.study import Choices

    if flag_values.law is not None and flag_values.method != "all":
        raise UserError(f"--law is a method of its own: leave out --method={flag_values.method}")
    for name in ("tie", "bounds", "start"):
        if flag_values[name].value is not None and flag_values.law is None:
            raise UserError(f"--{name} is about the parameters of --law, which is missing")
    base = options.pairs("base", flag_values.base, "E=1.87,A=521,B=1488,alpha=0.353,beta=0.353")
    constants = {name: options.number("base", f"{name}={value}", value) for name, value in base.items()}
    return Choices(
        law=flag_values.law,
        asked=options.read(flag_values.bounds, flag_values.tie, flag_values.start),
        error=flag_values.error,
        loss=flag_values.objective,
        against=flag_values.against,
        x=flag_values.x,
        base=Law.of("E + A/N**alpha + B/D**beta", **constants) if constants else None,
        link=flag_values.link,
        interpolate=flag_values.interpolate,
        window=flag_values.window,
    )


def _points(flag_values: flags.FlagValues, choices):
    """Return the points, with the columns that the laws name."""
    from bigjax.science.laws.formula import options
    from bigjax.science.laws.formula.expression import parse
    from bigjax.science.scaling_laws import read_csv, read_runs

    laws = [parse(law) for law in (choices.law, choices.against) if law is not None]
    counted = {"params": flag_values.params, "flops": flag_values.flops, "recompute": flag_values.recompute}
    if flag_values.runs is not None:
        if flag_values.columns is not None:
            raise UserError("--columns names columns of a CSV file: it has no use with --runs")
        return read_runs(flag_values.runs, **counted)
    columns = options.pairs("columns", flag_values.columns, "params=n_active,tokens=D")
    also = sorted({name for law in laws for name in law.names} - {"N", "D", "C", "U"})
    return read_csv(Path(flag_values.csv), **counted, columns=columns, also=also)


def _methods(flag_values: flags.FlagValues, points) -> tuple[str, ...]:
    from bigjax.science.laws.study import METHODS

    if flag_values.law is not None:
        return ("formula",)
    if flag_values.method == "downstream":
        return ("parametric", "downstream")
    if flag_values.method != "all":
        return (flag_values.method,)
    more = {"unique_tokens": "data_constrained", "accuracy": "downstream"}
    return (*METHODS, *(method for column, method in more.items() if column in points.extra))


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
