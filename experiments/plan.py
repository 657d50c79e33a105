"""Plan a run before anyone rents a chip: does it fit, how is it split, what bounds it, what does it cost.

The train step is compiled by the real compiler for devices that need not be here; nothing is run. --topology is
CHIP:AxBxC for TPUs (v4, v5e, v5p, v6e, tpu7x), CHIP:HOSTSxGPUS for GPUs (a100, h100, h200, b200, gb200) or cpu:N.

Exit status: 0 it fits; 1 a bug; 2 bad input; 3 something is silently replicated or
padded; 5 it does not fit.
"""

import math
import os
import sys
from dataclasses import replace
from typing import Any

from absl import flags

from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.paths import AnyPath, on_disk

from . import cli, config_source

EXAMPLES = (
    "python -m experiments.plan --config=llama:8b --topology=v5p:8x8x4 --tokens=2e11 --out=plan.json",
    "python -m experiments.plan --config=llama:8b --topology=v5e:16x16 --search --out=plan.json",
    "python -m experiments.plan --config=llama:70b --topology=h100:64x8 --analytic",
    "python -m experiments.plan --config=gpt:d12 --topology=v5e:4x4 --sweep_chips=16,64 --out=scale.json",
)

PACKAGED = {"shakespeare", "shakespeare-passages"}
"""Sources of text that is at hand everywhere."""


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_string, define_float = flags.DEFINE_string, flags.DEFINE_float
    define_string("topology", None, "the devices to plan for, e.g. v5p:8x8x4 or h100:8x8", flag_values=flag_values)
    flags.DEFINE_integer("num_slices", 1, "TPU slices joined by the data-centre network", flag_values=flag_values)
    define_float("tokens", None, "plan a run of so many tokens instead of train.steps", flag_values=flag_values)
    define_string("out", None, "also write the plan to this JSON file", flag_values=flag_values)
    flags.DEFINE_bool("analytic", False, "skip the compiler: any machine, seconds, less exact", flag_values=flag_values)
    flags.DEFINE_bool("search", False, "find the best mesh, remat and microbatches", flag_values=flag_values)
    define_float("budget_s", 600.0, "seconds that --search may take", flag_values=flag_values)
    define_float("timeout_s", 1800.0, "seconds that one compilation may take", flag_values=flag_values)
    define_string("sweep_chips", None, "numbers of chips, e.g. 16,64,256: see it scale", flag_values=flag_values)
    define_string("compare", None, "FILE[:ARG] of a config to put beside this one", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Validate the command line, then plan."""
    cfg = cli.load_config(flag_values.config)
    text = cli.required(flag_values, "topology")
    for name in ("tokens", "budget_s", "timeout_s"):
        value = flag_values[name].value
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}={value:g} must be a number above 0")
    counts = _counts(flag_values.sweep_chips)
    modes = [f"--{name}" for name in ("search", "sweep_chips", "compare") if flag_values[name].value]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} are different questions: ask one at a time")
    if flag_values.search and flag_values.analytic:
        raise UserError("--search asks the compiler about the best candidates: leave --analytic out")
    out = cli.out_path(flag_values)
    if counts and out is not None and out.suffix == ".png":
        raise UserError(
            f"--out={out} is where the picture goes: name the JSON file beside it, {out.with_suffix('.json')}"
        )
    # Nothing runs here, and a device at hand may be busy.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from bigjax.preflight.plan import candidates, devices
    from bigjax.preflight.plan.planner import Planner, exit_code
    from bigjax.sharding import PaddingError, ReplicationError

    topology = devices.parse(text, flag_values.num_slices)
    if topology.platform == "cpu" and (counts or flag_values.search):
        raise UserError(f"{modes[0]} compares step times, and there are no figures for {text}: name a chip, as v5e:4x4")
    if not flag_values.analytic:
        devices.check_installed(topology.platform)
    source = cli.config_of(sys.argv) or ""
    cfg = candidates.pinned(cfg, topology)
    steps_per_epoch = _steps_per_epoch(cfg, flag_values.analytic)
    planner = Planner(
        topology, source, flag_values.analytic, flag_values.timeout_s, flag_values.tokens, steps_per_epoch
    )
    try:
        if counts:
            return _sweep(cfg, planner, counts, out)
        if flag_values.search:
            return _search(cfg, planner, flag_values.budget_s, out)
        found = planner.plan(cfg)
        other = None
        if flag_values.compare is not None:
            other = _beside(planner, flag_values.compare)
    except (PaddingError, ReplicationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    _show(found, other, out)
    return exit_code(found)


def here(cfg: Config, source: str) -> int:
    """Show what the train step of `cfg`, from `source`, needs on the devices at hand; return the exit status.

    Everything that would fail before training fails here. Nothing is trained, and no folder is made.
    """
    import jax

    from bigjax import data, models, sharding
    from bigjax.preflight.plan import defaults, page, planner
    from bigjax.train import optimizers as optim
    from bigjax.train import step

    cfg, chosen = defaults.here(cfg, jax.devices())
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs)
    text = data.build(cfg, sharding.local_rows(mesh, cfg.train.global_batch_size))
    with jax.set_mesh(mesh):
        schedule = optim.schedule(cfg.optim, cfg.train.steps, text.train.ramp)
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps, schedule)
        abstract = step.abstract_state(cfg, model, tx, layout, mesh)
        batch = sharding.put_batch(text.train.batch(0).arrays, mesh, cfg.train.global_batch_size)
        traced = step.jit_train_step(cfg, model, tx, layout).trace(abstract, batch)
        found = planner.of_traced(cfg, traced, mesh, source, text.describe()["steps_per_epoch"]) | {"auto": chosen}
    if jax.process_index() == 0:
        print(page.render(found), flush=True)
    return planner.exit_code(found)


def _beside(planner: Any, source: str) -> dict[str, Any]:
    """Return the plan of another config; an error names it, since the first has been planned already."""
    from bigjax.preflight.plan import candidates

    cfg = candidates.pinned(cli.load_config(config_source.load(source)), planner.topology)
    try:
        return replace(planner, source=source).plan(cfg)
    except UserError as error:
        raise type(error)(f"--compare={source}: {error}") from error


def _steps_per_epoch(cfg: Config, quick: bool) -> float | None:
    """Return the batches that the text of a run makes, or None, and why on stderr, where it is not at hand.

    `quick`: read only the packaged text, in bytes, which takes no time.
    """
    from bigjax import data
    from bigjax.data.errors import DataError

    packaged = set(cfg.data.sources) <= PACKAGED and cfg.data.tokenizer == "bytes"
    if quick and not packaged:
        return None
    try:
        return data.build(cfg, slice(0, cfg.train.global_batch_size)).describe()["steps_per_epoch"]
    except DataError as error:
        print(f"note: epochs are not known, since the text cannot be used: {error}", file=sys.stderr)
        return None


def _counts(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError(f"--sweep_chips={text} is not a list of numbers such as 16,64,256")
    return [int(part) for part in parts]


def _show(found: dict[str, Any], other: dict[str, Any] | None, out: AnyPath | None) -> None:
    from bigjax.preflight.plan import comparison, page

    if other is None:
        print(page.render(found))
        cli.write_out(out, found)
        return
    print(comparison.beside(found, other))
    cli.write_out(out, {"plans": [found, other], "difference": comparison.difference(found, other)})


def _sweep(cfg: Config, planner: Any, counts: list[int], out: AnyPath | None) -> int:
    from bigjax.preflight.plan import scaling

    rows = scaling.sweep(cfg, planner, counts)
    print(scaling.table(rows))
    cli.write_out(out, rows)
    if out is not None:
        with on_disk(out.with_suffix(".png")) as picture:
            scaling.draw(rows, f"{planner.source} on {planner.topology.chip.name}", picture)
        print(f"picture: {out.with_suffix('.png')}")
    return 0 if any(row.get("fits") for row in rows) else 5


def _search(cfg: Config, planner: Any, budget_s: float, out: AnyPath | None) -> int:
    from bigjax.preflight.plan import candidates, defaults, search
    from bigjax.preflight.plan.planner import exit_code
    from bigjax.preflight.plan.search_table import SearchTable

    with SearchTable() as table:
        result = search.search(
            defaults.resolved(cfg, planner.topology)[0],
            planner.topology,
            budget_s=budget_s,
            timeout_s=planner.timeout_s,
            judge=lambda one, outcome: planner.judge(one.cfg, outcome),
            show=table.show,
        )
    print(table.summary(result))
    if not result.tried:
        raise UserError(f"--budget_s={budget_s:g} was over before the first plan was compiled: raise it")
    if result.best is None:
        print("no plan that was compiled fits; raise --budget_s, or use more chips", file=sys.stderr)
        return 5
    confirmed = _confirmed(result, planner)
    if confirmed is None:
        print("no plan fits at the compiler's default level", file=sys.stderr)
        return 5
    best, found = confirmed
    changes = candidates.changed_fields(cfg, best.changes)
    from bigjax.preflight.plan import page

    print(f"\n{page.render(found)}\n\nthe best plan found, as flags:\n  {candidates.flags(changes) or '(as it is)'}")
    preset = {"config": planner.source, "topology": found["topology"], "changes": changes}
    cli.write_out(out, found | {"preset": preset, "search": search.as_rows(result)})
    if out is not None:
        path = out.with_name(f"{out.stem}-preset.json")
        cli.write_out(path, preset)
        print(f"preset: --config={path}")
    return exit_code(found)


def _confirmed(result: Any, planner: Any) -> tuple[Any, dict[str, Any]] | None:
    """Return the best (candidate, report) that still fits when compiled at the default level, if any does."""
    for one in result.tried:
        if one.fits:
            found = planner.plan(one.candidate.cfg)
            if found["fits"]:
                return one.candidate, found
    return None


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES)
