"""Train a model: one config, one run folder, on whatever devices this machine has.

The run folder holds the resolved config, the environment, metrics, checkpoints and, once finished, result.json. The
same command again continues a run that was cut short, or says that it is complete.

A longer --config.train.steps goes on with a run, finished or not, whose learning rates so far do not depend on its
length. --config.init_state=RUN@STEP branches off another run; see `bigjax.train.continuation`.

With --plan nothing is trained: it says what the step needs on these devices, and ends. To train only if that is well:
python -m experiments.train --config=FILE --plan && python -m experiments.train --config=FILE

Exit status: 0 finished; 1 a bug; 2 bad input; 3 the loss or the gradient was not finite, or spiked (see forensics/ in
the run folder), or something is silently replicated (with --plan); 4 the last checkpoint could not be saved; 5 the step
does not fit (with --plan); 6 a process of the run was lost; 130 after Ctrl-C and 143 after SIGTERM, both with a
checkpoint saved.

The first signal lets the step under way end, and at most one more (of several processes, as many as log.every_steps),
with the evaluation that is due; then the run saves one checkpoint and ends. A second signal, a second or more later,
ends it at once with the same status and without that checkpoint.

A checkpoint that cannot be saved, as on a full or read-only disk, does not stop the training: it is reported, counted
as checkpoint/failed_saves in the metrics, and older checkpoints stay. If it is the last one, there is no result.json;
the same command continues from the newest checkpoint. A checkpoint found damaged is renamed to STEP.damaged, and the
next older one is used; if all are damaged, that is bad input.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.paths import AnyPath
from bigjax.run import identity
from bigjax.run.folder import RunFolder
from bigjax.train import rollback

from . import cli, plan
from .processes import distributed

Workdir = str | AnyPath | RunFolder

Witness = Callable[[int, Any, Any], None]
"""`witness(step, batch, state)` sees the state that training starts from, with None for the batch, and after each step
the batch and the state that came of it."""

EXAMPLES = (
    "python -m experiments.train --config=quickstart",
    "python -m experiments.train --config=gpt:d12 --config.mesh.fsdp=4 --workdir=runs/d12",
    "python -m experiments.train --config=hf:SmolLM2-135M --config.data.sources='text:corpus/*.txt'",
    "python -m experiments.train --config=quickstart --plan",
    "python -m experiments.train --config=quickstart --print_config",
    "python -m experiments.train --config=quickstart --diff=runs/quickstart",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "the run folder; by default runs/NAME of the config", flag_values=flag_values)
    flags.DEFINE_string("profile", None, "trace the steps FIRST-LAST into WORKDIR/profile", flag_values=flag_values)
    flags.DEFINE_bool(
        "plan",
        False,
        "show what the compiled step needs on these devices, train nothing, stop",
        flag_values=flag_values,
    )
    distributed.define_flags(flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Validate the command line, then run."""
    cfg = cli.load_config(flag_values.config)
    contents = identity.Once()
    folder = RunFolder(flag_values.workdir or cli.default_workdir(sys.argv), contents)
    profile = cli.parse_range("profile", flag_values.profile)
    if profile and not 1 <= profile[0] <= profile[-1] <= cfg.train.steps:
        raise UserError(f"--profile={flag_values.profile} leaves the steps of the run, 1-{cfg.train.steps}")
    if (status := distributed.supervise(flag_values)) is not None:
        return status
    if not flag_values.plan:
        print(f"bigjax: run {identity.fingerprint(cfg, contents(cfg))} in {folder.path}", file=sys.stderr, flush=True)
    from bigjax.run import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    if flag_values.plan:
        return plan.here(cfg, str(cli.config_of(sys.argv)))
    return run(cfg, folder, profile)


def unwatched(step: int, batch: Any, state: Any) -> None:
    """Look at nothing: the witness of most runs."""


@rollback.repeat_after_rollback
def run(cfg: Config, workdir: Workdir, profile: range | None = None, *, witness: Witness = unwatched) -> int:
    """Train `cfg` in `workdir` to the end, or until a signal; trace the steps `profile`; return the exit status."""
    # Only here: importing JAX takes seconds, and a user first wants to read what is going to run.
    import jax

    from bigjax import data, models, sharding
    from bigjax.checkpoint import Checkpoints, LenientSaves
    from bigjax.evaluate import scoring
    from bigjax.run import Interrupt, MetricsWriter, Pending, Profile, heartbeat, lock, say
    from bigjax.train import continuation, guard, optimizers, step

    from . import begin, finish

    # ---- Mesh, model, data -----------------------------------------------------------------------------------------
    # What the user can get wrong fails before the run folder is written to, and almost all of it before a compilation.
    batch_size, total_steps = cfg.train.global_batch_size, cfg.train.steps
    given, (cfg, notes) = cfg, begin.on_devices(cfg)  # what is `auto` depends on them
    folder = workdir if isinstance(workdir, RunFolder) else RunFolder(workdir, identity.Once())
    pulse = heartbeat.pulse(folder.path)  # which phase this process is in, for those that wait for it
    mesh, model = sharding.make_mesh(cfg.mesh), models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs, notes)
    if begin.is_complete(cfg, folder):
        return 0
    pulse.phase("data")
    text = begin.text_of(cfg, model, mesh)

    with lock.held(folder.path), jax.set_mesh(mesh), Checkpoints(folder.checkpoints, cfg.checkpoint) as checkpoints:
        # ---- Optimizer, step, state: one thread makes the state, another compiles the step -------------------------
        schedule = optimizers.schedule(cfg.optim, total_steps, text.train.ramp)
        tx = optimizers.build(cfg.optim, model.specs, total_steps, schedule)
        train_step = step.jit_train_step(cfg, model, tx, layout)
        abstract = step.abstract_state(cfg, model, tx, layout, mesh)
        starting = begin.Start(cfg, checkpoints, model, tx, layout, abstract, text)
        pulse.phase("compile")
        # Only the step itself knows some clashes, such as an attention back end that cannot do what is asked of it.
        traced = train_step.trace(abstract, sharding.put_batch(text.train.batch(0).arrays, mesh, batch_size))
        continuation.check_longer(folder, cfg)
        compiling = step.compile_aside(traced)
        state, start, text = starting.state(folder, pulse)

        # ---- Run folder: from here on the run exists, and the same command continues it ----------------------------
        begin.open_folder(given, folder, layout, text)
        signature = functools.cache(lambda: folder.signature(cfg))  # read once process 0 has written it
        say(begin.banner(cfg, model, mesh, layout, text, start, profile))
        pulse.phase("compile")
        compiling.result()
        # Only now, as what a CPU could reach is measured, and a compiler beside it would take half of that.
        speed = begin.throughput(cfg, model)
        rate, watchman = optimizers.looked_up(schedule), guard.Guard(cfg, folder, text, say)
        evaluate = scoring.evaluator(cfg, model, layout, text.eval, text.eval_apart)
        with (
            MetricsWriter(folder, cfg.log, total_steps, start or None) as writer,
            text.train.batches(start) as batches,
            Profile(folder, profile) as profiler,
            Interrupt() as interrupt,
        ):
            saves = LenientSaves(checkpoints, say, writer.stored)

            def report(done: int, batch: data.Batch, values: dict[str, Any]) -> None:
                """Read the metrics of a dispatched step, which waits for it; end this attempt if it diverged."""
                watchman.check(done, batch, values)
                speed.count(text.train.size(text.train.number(batch.step)) * cfg.data.seq_len)
                # A step with nothing to predict is always reported: of what is to be counted none is left out.
                if done % cfg.log.every_steps == 0 or done in (start + 1, total_steps) or not float(values["tokens"]):
                    writer.write(done, finish.metrics_row(cfg, values, rate) | speed.read())

            # ---- The loop ------------------------------------------------------------------------------------------
            # Where steps are dispatched ahead, a step is read while the next one runs; on CPUs, once it has ended.
            pending, stopping, done = Pending(report), False, start
            eval_every = cfg.train.eval_every_steps or total_steps
            witness(start, None, state)
            for done in range(start + 1, total_steps + 1):
                # Data: this process's rows of the global batch, which a thread reads ahead.
                profiler.before(done)
                pulse.phase("data", done)
                with speed.waiting_for_data():
                    batch = next(batches)
                # Step: it takes the state for good. The first one may still compile something.
                pulse.phase("step" if done > start + 1 else "compile", done)
                state, values = train_step(state, sharding.put_batch(batch.arrays, mesh, batch_size))
                profiler.after(done, values)
                pending.dispatched(done, batch, values)
                witness(done, batch, state)
                # Report: at once if the state is needed below, as what is not finite is neither scored nor saved.
                stopping = interrupt.agreed(done, cfg.log.every_steps) and done < total_steps
                ending = stopping or done == total_steps
                evaluating = done < total_steps and done % eval_every == 0
                saving = ending or checkpoints.should_save(done)
                pending.settle(at_once=evaluating or saving)
                # Evaluate: on held-out text, while the clock stands. The last step is scored below, after its save.
                if evaluating:
                    with speed.paused():
                        writer.write(done, finish.scores_row(evaluate(state)))
                # Save: in the background, but for the last one, which is whole before the run is called complete.
                if saving:
                    pulse.phase("save", done)
                    saves.save(done, state, text.train.state(done), signature(), last=ending)
                    if news := saves.news():
                        writer.write(done, news)
                if stopping:
                    break

            # ---- Scores, sample, result: for a run whose last checkpoint is whole ----------------------------------
            scores = {} if stopping else evaluate(state)
            finish.write_scores(writer, folder, total_steps, scores)
        if status := finish.status(done, saves, interrupt, stopped=stopping):
            return status
        finish.write(cfg, folder, model, layout, state.weights, text, scores, speed.average())
    return 0


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES)
