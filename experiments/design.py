"""Choose the runs that make a target's loss known best, and freeze its prediction before it runs.

The law is that of an earlier fit, or five published numbers with --prior. --judge says what became of frozen
predictions: whether each held, and how many of them did.
"""

from pathlib import Path

from absl import flags

from bigjax.errors import UserError

from . import cli

EXAMPLES = (
    "python -m experiments.design --fit=fits/scaling --target=N=7e9,D=2e12 --budget=1e22 --out=designs/7b",
    "python -m experiments.design --fit=fits/more --target=N=7e9,D=2e12 --run=runs/7b --out=designs/7b",
    "python -m experiments.design --judge='designs/*/prediction.json'",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    for name, what in (
        ("fit", "folder of a fit whose law is used"),
        ("prior", "a law of published numbers instead, such as E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28"),
        ("target", "the run to be known best, such as N=7e9,D=2e12"),
        ("run", "the folder that the target will have: its prediction is frozen before it starts"),
        ("judge", "glob of frozen predictions to compare with their runs"),
        ("out", "the folder to write"),
    ):
        flags.DEFINE_string(name, None, what, flag_values=flag_values)
    flags.DEFINE_float("budget", None, "FLOPs to spend on the runs", flag_values=flag_values)
    flags.DEFINE_float("prior_sd", 0.2, "how far --prior is off, as a share of each number", 0, flag_values=flag_values)
    flags.DEFINE_float(
        "noise", 0.005, "how far runs are off the law of --prior, in log loss", 0, flag_values=flag_values
    )


def main(flag_values: flags.FlagValues) -> None:
    """Write design.json, prediction.json or both, and print them; or print what became of predictions."""
    from bigjax.run.json_files import write_json
    from bigjax.science.laws import frozen
    from bigjax.science.laws.design import design_for
    from bigjax.science.laws.formula import predictions

    if flag_values.judge is not None:
        _judge(flag_values.judge)
        return
    law = _law(flag_values)
    asked = predictions.read(cli.required(flag_values, "target"))
    if len(asked) != 1 or set(asked[0]) != {"N", "D"}:
        raise UserError(f"--target={flag_values.target} is not one run of N and D, such as N=7e9,D=2e12")
    out, (N, D) = Path(cli.required(flag_values, "out")), (asked[0]["N"], asked[0]["D"])
    if flag_values.budget is None and flag_values.run is None:
        raise UserError("--budget=FLOPS chooses runs and --run=FOLDER freezes a prediction: give one of them, or both")
    try:
        if flag_values.budget is not None:
            found = design_for(law, N, D, flag_values.budget)
            out.mkdir(parents=True, exist_ok=True)
            runs = [{"N": run.N, "D": run.D, "C": run.C} for run in found.runs]
            write_json(out / "design.json", {"target": asked[0], "runs": runs, "half_before": found.half_before,
                                             "half_after": found.half_after})  # fmt: skip
            for run in found.runs:
                print(f"run N={run.N:.3g} on D={run.D:.3g} tokens, {run.C:.3g} FLOPs")
            halves = f"±{found.half_before:.2%} to ±{found.half_after:.2%}"
            print(f"they shrink the law's 95 % interval of the target's loss from {halves} (expected)")
        if flag_values.run is not None:
            said = frozen.freeze(law, N, D, Path(flag_values.run), out)
            low, high = said["ci95"]
            print(
                f"frozen: loss {said['loss']:.4f} [{low:.4f}, {high:.4f}] of {flag_values.run}, {said['digest'][:12]}"
            )
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error


def _law(flag_values: flags.FlagValues):
    """Return the law of a fit, or a prior with replicates that differ as it says."""
    import numpy as np

    from bigjax.science.laws.formula import options, stored
    from bigjax.science.laws.formula.law import CHINCHILLA, Law, with_doubt

    if (flag_values.fit is None) == (flag_values.prior is None):
        raise UserError("one of --fit=FOLDER, --prior=NUMBERS and --judge=GLOB must be given")
    if flag_values.fit is not None:
        return stored.load_fit(flag_values.fit)
    numbers = options.pairs("prior", flag_values.prior, "E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28")
    constants = {name: options.number("prior", f"{name}={value}", value) for name, value in numbers.items()}
    rng = np.random.default_rng(0)
    return with_doubt(Law.of(CHINCHILLA, **constants), flag_values.prior_sd, flag_values.noise, rng)


def _judge(pattern: str) -> None:
    """Print a line for each prediction, and how many held."""
    from bigjax.science.laws import frozen

    root, relative = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (Path(), pattern)
    paths = sorted(root.glob(relative))
    if not paths:
        raise UserError(f"--judge={pattern} matches no file: name prediction.json of designs")
    judged = frozen.judge(paths)
    for each in judged:
        low, high = each.ci95
        measured = "not finished" if each.measured is None else f"measured {each.measured:.4f}"
        verdict = {None: "open", True: "held", False: "failed"}[each.held]
        print(f"{each.place}: {verdict}, predicted {each.loss:.4f} [{low:.4f}, {high:.4f}], {measured} in {each.run}")
    known = [each for each in judged if each.held is not None]
    if known:
        print(f"{sum(bool(each.held) for each in known)} of {len(known)} predictions held, of 95 % intervals")


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config=False)
