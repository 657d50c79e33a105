"""Does a model learn the same at every width, and depth, under muP, as it does not by the standard parametrization?

The config, made small (same code; heads grow in number, or in size where model.mup.base_head_dim is set), takes a few
steps of its optimizer on one batch at every width, by both parametrizations, from several initial values. For all that
the model names on its way, and the logits, the root mean square is fitted as a power of the width: at the start, and
of what the steps changed (the coordinate check of Yang et al. 2022, appendix D.1). muP says 0 for all exponents, but
for the logits at the start, which may fall: they come from weights that have not learned yet. A rule that is wrong
moves some exponent by 1/2 or more; half of that is allowed. Not so attention's 1/d, where heads grow in size: queries
and keys that have learned for a few steps are hardly aligned, and 1/sqrt(d) looks as flat. Where
model.mup.base_num_layers is set, or --depths, the same goes for depths, at the base width, and of what all blocks name
together.

Exit status: 0 flat under muP; 1 a bug; 2 bad input, such as what muP has no rule for; 4 not flat.
"""

import sys
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from absl import flags

from bigjax.errors import UserError

from .. import cli

EXAMPLES = (
    "python -m experiments.check mup --config=quickstart --config.optim.name=adamw",
    "python -m experiments.check mup --config=moe_tiny --widths=64,256 --out=mup.json --plot=mup.png",
    "python -m experiments.check mup --config=gpt:d12 --depths=2,4,8,16",
)

MIN_WIDTH, MULTIPLE = 32, 16
"""Below, what is of lower order in the width is not small; heads and MLPs need whole sizes."""


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check mup`."""
    flags.DEFINE_list("widths", ["64", "128", "256"], "d_model of the models, the base first", flag_values=flag_values)
    flags.DEFINE_list("depths", None, "numbers of layers, the base first (default: 4)", flag_values=flag_values)
    flags.DEFINE_integer("steps", 4, "updates", 1, flag_values=flag_values)
    flags.DEFINE_integer("seeds", 4, "initial values that are averaged over", 1, flag_values=flag_values)
    flags.DEFINE_string("out", None, "also write the sizes and exponents to this JSON file", flag_values=flag_values)
    flags.DEFINE_string("plot", None, "also draw the sizes, as PNG or SVG", flag_values=flag_values)


def run(flag_values: flags.FlagValues) -> int:
    """Measure by both parametrizations, print the exponents, judge those of muP."""
    cfg, widths, out = cli.load_config(flag_values.config), _widths(flag_values.widths), cli.out_path(flag_values)
    depths = _depths(flag_values.depths, cfg.model)
    if flag_values.plot and Path(flag_values.plot).suffix not in (".png", ".svg"):
        raise UserError(f"--plot={flag_values.plot} must end in .png or .svg")
    from bigjax.run import runtime

    runtime.configure_jax()
    from bigjax.preflight import widths as growing

    # What muP has no rule for is said before anything is measured.
    growing.at_width(cfg, widths[0], widths[0], "mup")
    if depths:
        growing.at_depth(cfg, depths[0], depths[0], widths[0], "mup")
    source, how = cli.config_of(sys.argv) or "", {"steps": flag_values.steps, "seeds": flag_values.seeds}
    growths, uneven = [], {}
    for along, values in (("width", widths), ("depth", depths)):
        if not values:
            continue
        grown = growing.over_widths if along == "width" else partial(growing.over_depths, width=widths[0])
        mup, standard = (grown(cfg, name, values, **how) for name in ("mup", "standard"))
        growths += [standard, mup]
        uneven[along] = mup.uneven()
        sizes = f"{along}s {', '.join(map(str, values))}"
        print(f"{source}: {cfg.optim.name}, {sizes}, {how['steps']} steps, {how['seeds']} seeds")
        print("\n".join((*_table(mup, standard, uneven[along]), _verdict(uneven[along], standard))))
    report = {"config": source, "optimizer": cfg.optim.name, **how, "tolerance": growing.TOLERANCE, "uneven": uneven}
    cli.write_out(out, report | {"growth": list(map(_json, growths))})
    if flag_values.plot:
        try:
            growing.draw(growths, f"{source}, {cfg.optim.name}", Path(flag_values.plot))
        except OSError as error:
            raise UserError(f"--plot={flag_values.plot} cannot be written: {error.strerror}") from error
    return 4 if any(uneven.values()) else 0


def _sizes(name: str, texts: list[str], example: str) -> list[int]:
    given = f"--{name}={','.join(texts)}"
    if not all(text.strip().isdecimal() for text in texts):
        raise UserError(f"{given} must be whole numbers, such as {example}")
    sizes = [int(text) for text in texts]
    if len(sizes) < 2 or sorted(set(sizes)) != sizes:
        raise UserError(f"{given} must be at least two, each larger than the one before")
    return sizes


def _depths(texts: list[str] | None, model: Any) -> list[int]:
    """Return the depths to try: those given, by default the smallest four that double, none if depth is not scaled."""
    if texts is None:
        least = model.period * ceil(2 / model.period)
        return [least * 2**power for power in range(4)] if model.mup.base_num_layers else []
    depths = _sizes("depths", texts, "2,4,8")
    for depth in depths:
        if not depth or depth % model.period:
            raise UserError(f"--depths: {depth} is not a multiple of {model.period}, after which the layers repeat")
    return depths


def _widths(texts: list[str]) -> list[int]:
    widths = _sizes("widths", texts, "64,128,256")
    for width in widths:
        if width < MIN_WIDTH or width % MULTIPLE or width % widths[0]:
            raise UserError(
                f"--widths: {width} must be at least {MIN_WIDTH}, and a multiple of {MULTIPLE} and of the first"
            )
    return widths


def _table(mup: Any, standard: Any, uneven: dict[str, list[str]]) -> list[str]:
    lines = [f"{f'exponent of the {mup.along}':<24}{'muP: start':>12}{'change':>9}{'standard: start':>18}{'change':>9}"]
    for name, slope in mup.slopes.items():
        other = standard.slopes.get(name)
        line = f"  {name:<22}{slope.start:>12.2f}{slope.change:>9.2f}"
        line += f"{other.start:>18.2f}{other.change:>9.2f}" if other else ""
        lines.append(line + (f"  NOT FLAT: {' and '.join(uneven[name])}" if name in uneven else ""))
    return lines


def _verdict(uneven: dict[str, list[str]], standard: Any) -> str:
    steep = max(standard.slopes, key=lambda name: abs(standard.slopes[name].change))
    along = standard.along
    contrast = f"by the standard parametrization {steep} changes as {along}^{standard.slopes[steep].change:.2f}"
    if not standard.uneven():
        contrast = f"but neither does the standard parametrization: these {along}s show nothing"
    if not uneven:
        return f"FLAT under muP: nothing grows or shrinks with the {along}; {contrast}"
    name, quantities = next(iter(uneven.items()))
    return f"NOT FLAT under muP: {len(uneven)} of the quantities, first {name} ({quantities[0]}); {contrast}"


def _json(growth: Any) -> dict[str, Any]:
    return {
        "parametrization": growth.parametrization,
        "along": growth.along,
        "values": growth.values,
        "sizes": [{name: size._asdict() for name, size in one.items()} for one in growth.sizes],
        "exponents": {name: slope._asdict() for name, slope in growth.slopes.items()},
    }
