"""Run a sweep: the points that a config file's `sweep(add)` adds, each once, whatever is cut short or fails.

Every point is resolved and checked before the first starts. A point's identity is the fingerprint of its maths: the
same command again skips what is finished, goes on with what was cut off, and tries again what failed. Several launches
may work on one folder at once, also from several machines. The table is in sweep.json and sweep.csv of the folder.

Exit status: 0 every point finished or diverged, which is a result; 1 some failed; 2 bad input, before any point starts;
130 after Ctrl-C and 143 after SIGTERM, every point under way with a checkpoint saved. A second signal ends it at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from bigjax.config import Config, strict
from bigjax.errors import UserError
from bigjax.paths import AnyPath, RemotePath
from bigjax.run.interrupt import Interrupt
from bigjax.science import sweeps
from bigjax.science.sweeps import Point, SweepError
from bigjax.science.sweeps.folder import SweepFolder
from bigjax.train import continuation

from .. import cli, config_source
from . import table as sweep_table
from .launch import SETTLED, Launch
from .table import LiveTable

EXAMPLES = (
    "python -m experiments.sweep --config=sweeps/lr_width --workdir=runs/lr_width",
    "python -m experiments.sweep --config=sweeps/lr_width --workdir=runs/lr_width --explain",
    "python -m experiments.sweep --config=sweeps/lr_width --config.train.steps=50 --runner=inline",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string(
        "workdir", None, "the folder of the sweep; by default runs/NAME of the config", flag_values=flag_values
    )
    flags.DEFINE_enum(
        "runner",
        "local",
        ("inline", "local", "vmap", "slurm"),
        "inline: one after the other in this process; local: in processes of their own; vmap: points that differ in "
        "numbers only in one compiled program, spread over the devices; slurm: as a job array",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("processes", 0, "of runner local; 0: one for every two cores", 0, flag_values=flag_values)
    flags.DEFINE_integer("stack", 32, "of runner vmap: points of one program at most", 1, flag_values=flag_values)
    flags.DEFINE_list(
        "slurm",
        [],
        "of runner slurm: KEY=VALUE,... as submitit takes them",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "preflight", False, "first trace the step of every point on the devices at hand", flag_values=flag_values
    )
    flags.DEFINE_bool("explain", False, "say what would be run and why, and stop", flag_values=flag_values)
    flags.DEFINE_enum(
        "search",
        None,
        ("tpe", "random"),
        "let Optuna choose points of the config file's space(), instead of sweep(add)",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("trials", 20, "of a search, over all launches", 1, flag_values=flag_values)
    flags.DEFINE_enum("pruner", "none", ("none", "asha"), "what ends bad trials early", flag_values=flag_values)
    flags.DEFINE_string(
        "storage", None, "of a search: a file, or an SQL URL; by default in the folder", flag_values=flag_values
    )
    flags.DEFINE_bool("retry", False, "also run again what diverged or was pruned", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Resolve the points, then explain or run them, or search for them."""
    base = strict.to_config_dict(cli.load_config(flag_values.config))
    source = str(cli.config_of(sys.argv))
    folder = SweepFolder(flag_values.workdir or cli.default_workdir(sys.argv))
    if isinstance(folder.path, RemotePath):
        if flag_values.runner == "slurm":
            raise UserError("--runner=slurm keeps its jobs on a disk: choose another runner, or a --workdir on a disk")
        if flag_values.search and not flag_values.storage:
            raise UserError(
                "--storage is missing: a search in an object store needs a file or a database for its trials"
            )
    for name in ("trials", "pruner", "storage"):
        if flag_values[name].present and not flag_values.search:
            raise UserError(f"--{name} is for a search: say which with --search=tpe or --search=random")
    if flag_values.search:
        return search(flag_values, base, source, folder)
    points = sweeps.collect(config_source.load_sweep(source), base)
    if flag_values.explain:
        explain(folder, points)
        return 0
    check_branches(folder, points)
    if flag_values.preflight:
        preflight(points)
    runner = choose_runner(flag_values, points, folder.path)
    with LiveTable(flag_values.runner != "inline") as table, Interrupt() as interrupt:
        launch = Launch(folder, points, table.say, retry=flag_values.retry)
        folder.write_table(points, source)
        table.say(f"{len(points)} points in {folder.path}, {len(launch.open())} to run")
        runner(launch, lambda: _tick(launch, table, interrupt))
    return finish(launch, points, source, interrupt)


def check_branches(folder: SweepFolder, points: Sequence[Point]) -> None:
    """Make sure that the points that have not started, and are to branch off a run, can.

    Raises:
      SweepError: one cannot.
    """
    started = folder.runs()
    for point in points:
        if point.fingerprint not in started:
            try:
                continuation.check_branch(point.cfg)
            except UserError as error:
                raise SweepError(f"point {point.number} of {len(points)} ({point.name}): {error}") from error


def choose_runner(
    flag_values: flags.FlagValues, points: Sequence[Point], folder: AnyPath
) -> Callable[[Launch, Callable[[], None]], None]:
    """Return the runner that was asked for, `runner(launch, tick)`, after checking that it can take the points.

    Raises:
      UserError: it cannot.
    """
    if flag_values.runner == "inline":
        from . import inline as sweep_inline

        return lambda launch, tick: sweep_inline.run(launch)
    if flag_values.runner == "vmap":
        from . import stacked as sweep_stacked

        sweep_stacked.check(points)
        return lambda launch, tick: sweep_stacked.run(launch, flag_values.stack, tick)
    if flag_values.runner == "slurm":
        from . import slurm as sweep_slurm

        executor = sweep_slurm.executor(folder, _parameters(flag_values.slurm))
        return lambda launch, tick: sweep_slurm.run(launch, executor, tick)
    from . import local as sweep_local

    processes = min(_processes(flag_values), len(points))
    return lambda launch, tick: sweep_local.run(launch, processes, tick)


def search(flag_values: flags.FlagValues, base: ConfigDict, source: str, folder: SweepFolder) -> int:
    """Let Optuna choose points until there are enough trials."""
    from .search import Search

    if flag_values.runner != "local":
        raise UserError(f"--search trains points as runner local, not {flag_values.runner}")
    space = config_source.load_space(source)
    with LiveTable() as table, Interrupt() as interrupt:
        launch = Launch(folder, [], table.say, retry=flag_values.retry)
        study = Search(
            launch,
            space,
            base,
            flag_values.storage or str(folder.path / "study.journal"),
            sampler=flag_values.search,
            asha=flag_values.pruner == "asha",
        )
        study.run(flag_values.trials, _processes(flag_values), lambda: _tick(launch, table, interrupt))
    return finish(launch, study.points(), source, interrupt)


def finish(launch: Launch, points: Sequence[Point], source: str, interrupt: Interrupt) -> int:
    """Write and print the table; return the exit status."""
    rows = launch.folder.write_table(points, source)
    sweep_table.print_table(rows)
    print(f"the table is in {launch.folder.path}/sweep.json and sweep.csv")
    if launch.stopping:
        return interrupt.exit_code or launch.stopped_by
    return int(any(row["state"] not in SETTLED for row in rows))


def _parameters(texts: Sequence[str]) -> dict[str, Any]:
    """Return what --slurm says, whole numbers as such."""
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise UserError(f"--slurm={wrong[0]} is not KEY=VALUE, such as timeout_min=60")
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}


def _tick(launch: Launch, table: LiveTable, interrupt: Interrupt) -> None:
    launch.stopping = launch.stopping or interrupt.requested
    table.show(launch.statuses)


def _processes(flag_values: flags.FlagValues) -> int:
    return flag_values.processes or max(1, (os.cpu_count() or 1) // 2)


def explain(folder: SweepFolder, points: Sequence[Point]) -> None:
    """Print for each point what would be done, and for a new one which fields make it new."""
    folder.check_text(points)
    runs = folder.runs()
    before = {fingerprint: run.load_config() for fingerprint, run in runs.items()}
    width = max(len(point.name) for point in points)
    for point in points:
        print(f"{point.number:>4}  {point.name:<{width}}  {_plan(folder, point, runs, before)}")


def _plan(folder: SweepFolder, point: Point, runs: dict[str, Any], before: dict[str, Config]) -> str:
    status = folder.status(point, runs)
    if point.fingerprint not in before:
        return f"new: {sweeps.explain(point.cfg, before.values())}"
    changed = [d for d in strict.diff(before[point.fingerprint], point.cfg) if d.plumbing]
    plumbing = "".join(f"; plumbing {d.path} {d.a!r} → {d.b!r} changes nothing" for d in changed)
    said = {
        "finished": f"finished, loss {status.loss:.4f}" if status.loss is not None else "finished",
        "running": f"running, at step {status.step}",
        "cut off": f"to be continued, it is at step {status.step}",
        "waiting": "to be run",
        "failed": f"to be run again, it failed: {status.reason}",
    }
    return f"{said.get(status.state, f'{status.state}: {status.reason}')}{plumbing}"


def preflight(points: Sequence[Point]) -> None:
    """Trace the step of every point; those that differ in the seed or the schedule's numbers only share a trace.

    Raises:
      UserError: one or more cannot be traced; names them.
    """
    from bigjax import sharding
    from bigjax.preflight.plan import program
    from bigjax.run import runtime

    runtime.configure_jax()
    problems, traced = [], set[str]()
    for point in points:
        alike = strict.fingerprint(sweeps.without_scalars(point.cfg))
        if alike in traced:
            continue
        traced.add(alike)
        try:
            program.build(point.cfg, sharding.make_mesh(point.cfg.mesh)).trace()
        except UserError as error:
            problems.append(f"point {point.number} ({point.name}): {error}")
    if problems:
        raise UserError("\n".join(problems))
    print(f"preflight: {len(points)} points trace, in {len(traced)} programs", file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES)
