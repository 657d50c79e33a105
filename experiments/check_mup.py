"""Does a model learn the same at every width under muP, as it does not by the standard parametrization?

The config, made small (same code; heads grow in number, or in size where model.mup_base_head_dim is set), takes a few
steps of its optimizer on one batch at every width, by both parametrizations, from several initial values. For all that
the model names on its way, and the logits, the root mean square is fitted as a power of the width: at the start, and
of what the steps changed (the coordinate check of Yang et al. 2022, appendix D.1). muP says 0 for all exponents, but
for the logits at the start, which may fall: they come from weights that have not learned yet. A rule that is wrong
moves some exponent by 1/2 or more; half of that is allowed.

Exit status: 0 flat under muP; 1 a bug; 2 bad input, such as what muP has no rule for; 4 not flat.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from bigjax.errors import UserError
from experiments import cli

EXAMPLES = (
    "python -m experiments.check mup --config=configs/quickstart.py --config.optim.name=adamw",
    "python -m experiments.check mup --config=configs/bert.py:base --widths=64,256 --out=mup.json --plot=mup.png",
)

MIN_WIDTH, MULTIPLE = 32, 16
"""Below, what is of lower order in the width is not small; heads and MLPs need whole sizes."""


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check mup`."""
    flags.DEFINE_list("widths", ["64", "128", "256"], "d_model of the models, the base first", flag_values=flag_values)
    flags.DEFINE_integer("steps", 4, "updates", 1, flag_values=flag_values)
    flags.DEFINE_integer("seeds", 4, "initial values that are averaged over", 1, flag_values=flag_values)
    flags.DEFINE_string("out", None, "also write the sizes and exponents to this JSON file", flag_values=flag_values)
    flags.DEFINE_string("plot", None, "also draw the sizes, as PNG or SVG", flag_values=flag_values)


def run(flag_values: flags.FlagValues) -> int:
    """Measure by both parametrizations, print the exponents, judge those of muP."""
    cfg, widths, out = cli.load_config(flag_values.config), _widths(flag_values.widths), cli.out_path(flag_values)
    if flag_values.plot and Path(flag_values.plot).suffix not in (".png", ".svg"):
        raise UserError(f"--plot={flag_values.plot} must end in .png or .svg")
    from bigjax import runtime

    runtime.configure_jax()
    from bigjax.preflight import widths as growing

    growing.at_width(cfg, widths[0], widths[0], "mup")  # what muP has no rule for is said before anything is measured
    source, how = cli.config_of(sys.argv) or "", {"steps": flag_values.steps, "seeds": flag_values.seeds}
    mup, standard = (growing.measure(cfg, name, widths, **how) for name in ("mup", "standard"))
    uneven = mup.uneven()
    print(
        f"{source}: {cfg.optim.name}, widths {', '.join(map(str, widths))}, {how['steps']} steps, {how['seeds']} seeds"
    )
    print("\n".join(_table(mup, standard, uneven)))
    print(_verdict(uneven, standard))
    report = {"config": source, "optimizer": cfg.optim.name, **how, "tolerance": growing.TOLERANCE, "uneven": uneven}
    cli.write_out(out, report | {"growth": _json(mup, standard)})
    if flag_values.plot:
        try:
            growing.draw((standard, mup), f"{source}, {cfg.optim.name}", Path(flag_values.plot))
        except OSError as error:
            raise UserError(f"--plot={flag_values.plot} cannot be written: {error.strerror}") from error
    return 4 if uneven else 0


def _widths(texts: list[str]) -> list[int]:
    if not all(text.strip().isdigit() for text in texts):
        raise UserError(f"--widths={','.join(texts)} must be whole numbers, such as 64,128,256")
    widths = [int(text) for text in texts]
    if len(widths) < 2 or sorted(set(widths)) != widths:
        raise UserError(f"--widths={','.join(texts)} must be at least two, each larger than the one before")
    for width in widths:
        if width < MIN_WIDTH or width % MULTIPLE or width % widths[0]:
            raise UserError(
                f"--widths: {width} must be at least {MIN_WIDTH}, and a multiple of {MULTIPLE} and of the first"
            )
    return widths


def _table(mup: Any, standard: Any, uneven: dict[str, list[str]]) -> list[str]:
    lines = [f"{'exponent of the width':<24}{'muP: start':>12}{'change':>9}{'standard: start':>18}{'change':>9}"]
    for name, slope in mup.slopes.items():
        other = standard.slopes.get(name)
        line = f"  {name:<22}{slope.start:>12.2f}{slope.change:>9.2f}"
        line += f"{other.start:>18.2f}{other.change:>9.2f}" if other else ""
        lines.append(line + (f"  NOT FLAT: {' and '.join(uneven[name])}" if name in uneven else ""))
    return lines


def _verdict(uneven: dict[str, list[str]], standard: Any) -> str:
    steep = max(standard.slopes, key=lambda name: abs(standard.slopes[name].change))
    contrast = f"by the standard parametrization {steep} changes as width^{standard.slopes[steep].change:.2f}"
    if not standard.uneven():
        contrast = "but neither does the standard parametrization: these widths show nothing"
    if not uneven:
        return f"FLAT under muP: nothing grows or shrinks with the width; {contrast}"
    name, quantities = next(iter(uneven.items()))
    return f"NOT FLAT under muP: {len(uneven)} of the quantities, first {name} ({quantities[0]}); {contrast}"


def _json(*growths: Any) -> list[dict[str, Any]]:
    return [
        {
            "parametrization": growth.parametrization,
            "widths": growth.widths,
            "sizes": [{name: size._asdict() for name, size in one.items()} for one in growth.sizes],
            "exponents": {name: slope._asdict() for name, slope in growth.slopes.items()},
        }
        for growth in growths
    ]
