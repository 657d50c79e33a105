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

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from bigjax.config import Config, strict
from bigjax.errors import UserError
from bigjax.run import identity
from bigjax.train import rollback
from experiments import cli, plan
from experiments.processes import distributed

EXAMPLES = (
    "python -m experiments.train --config=configs/quickstart.py",
    "python -m experiments.train --config=configs/gpt.py:d12 --config.mesh.fsdp=4 --workdir=runs/d12",
    "python -m experiments.train --config=hf:SmolLM2-135M --config.data.sources='text:corpus/*.txt'",
    "python -m experiments.train --config=configs/quickstart.py --plan",
    "python -m experiments.train --config=configs/quickstart.py --print_config",
    "python -m experiments.train --config=configs/quickstart.py --diff=runs/quickstart",
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
    workdir = Path(flag_values.workdir or cli.default_workdir(sys.argv))
    profile = cli.parse_range("profile", flag_values.profile)
    if profile and not 1 <= profile[0] <= profile[-1] <= cfg.train.steps:
        raise UserError(f"--profile={flag_values.profile} leaves the steps of the run, 1-{cfg.train.steps}")
    if (status := distributed.supervise(flag_values)) is not None:
        return status
    print(f"bigjax: run {identity.fingerprint(cfg)} in {workdir}", file=sys.stderr, flush=True)
    from bigjax.run import runtime

    runtime.configure_jax()
    distributed.initialize(flag_values)
    if flag_values.plan:
        return plan.here(cfg, str(cli.config_of(sys.argv)))
    return run(cfg, workdir, profile)


@rollback.repeat_after_rollback
def run(
    cfg: Config,
    workdir: str | Path,
    profile: range | None = None,
    *,
    witness: Callable[[int, Any, Any], None] | None = None,
) -> int:
    """Train `cfg` in `workdir` to the end, or until a signal; return the exit status.

    `witness(step, batch, state)`, if given, sees the state that training starts from, with None for the batch, and
    after each step the batch and the state that came of it.
    """
    workdir = Path(workdir)
    import jax

    from bigjax import data, models, sharding
    from bigjax.checkpoint import saving as checkpoint
    from bigjax.checkpoint.lenient import LenientSaves
    from bigjax.evaluate.scoring import score
    from bigjax.interop.hf import origin as hf_origin
    from bigjax.run import heartbeat, metrics, runtime
    from bigjax.run import lock as run_lock
    from bigjax.run.folder import RunFolder
    from bigjax.run.interrupt import Interrupt
    from bigjax.run.processes import agreed
    from bigjax.run.throughput import Profile, Throughput
    from bigjax.train import continuation, flops, guard, step
    from bigjax.train import optimizers as optim
    from experiments import finish, trained

    batch_size, total_steps = cfg.train.global_batch_size, cfg.train.steps

    pulse = heartbeat.pulse(workdir)  # which phase this process is in, for those that wait for it

    def say(line: str) -> None:
        if jax.process_index() == 0:
            print(line, file=sys.stderr, flush=True)

    # Everything that the user can get wrong fails before the folder is written to, and almost all of it before anything
    # is compiled.
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs)
    folder = RunFolder(workdir)
    folder.check_text(cfg)
    if folder.complete and folder.is_of(cfg):
        say(f"{workdir} is complete: {finish.summary(folder)}")
        return 0
    pulse.phase("data")
    text = data.build(cfg, sharding.local_rows(mesh, batch_size))
    finish.check_sample(cfg, model, text)

    with (
        run_lock.held(folder.path),
        jax.set_mesh(mesh),
        checkpoint.Checkpoints(folder.checkpoints, cfg.checkpoint) as checkpoints,
    ):
        schedule = optim.schedule(cfg.optim, total_steps, text.train.ramp)
        rate, tx = optim.looked_up(schedule), optim.build(cfg.optim, model.specs, total_steps, schedule)
        train_step = step.jit_train_step(cfg, model, tx, layout)
        eval_step = jax.jit(step.make_eval_step(cfg, model, layout))
        fresh = jax.jit(lambda: step.fresh(cfg, model, layout))
        abstract = step.abstract_state(cfg, model, tx, layout, mesh)
        initial, resuming = None, checkpoints.resumable()
        branching = cfg.init_state is not None and not resuming
        if branching:
            continuation.check_branch(cfg)
        if cfg.init_from is not None and not resuming:
            initial = trained.initial_params(cfg, abstract.params, text)
        pulse.phase("compile")
        initializing = None if resuming or branching else step.init_aside(cfg, model, tx, layout)
        # Only the step itself knows some clashes, such as an attention back end that cannot do what is asked of it.
        traced = train_step.trace(abstract, sharding.put_batch(text.train.batch(0).arrays, mesh, batch_size))
        continuation.check_longer(folder, cfg)
        compiling = step.compile_aside(traced)
        if initializing is None:
            pulse.phase("restore")
            restored = continuation.restore_branch(cfg, abstract) if branching else checkpoints.restore(abstract)
            stream = text.train.leaving_out(rollback.left_out(folder, restored.data_state))
            stream.check(restored.data_state)
            state, start = restored.state, restored.step
        else:
            stream = text.train.leaving_out(rollback.left_out(folder))
            state, start = initializing.result(), 0
            if initial is not None:
                state = step.with_params(state, initial)
        text = dataclasses.replace(text, train=stream)
        folder.open(cfg, continuation.LENGTHS)
        rollback.note(folder, stream.left_out)
        if jax.process_index() == 0:
            data.save_tokenizer(text.tokenizer, folder.path)
            hf_origin.keep(cfg.init_from, folder.path)
            folder.write_data(text.describe())
        saved_with = {"fingerprint": folder.fingerprint, "config": strict.to_dict(cfg)}

        def evaluate(state: step.TrainState) -> dict[str, float]:
            if text.eval is None:
                return {}
            weights = state.params if state.ema is None else state.ema
            return score(eval_step, weights, text.eval.batches(cfg.train.eval_batches), batch_size, fresh())

        say(finish.banner(cfg, model, mesh, layout, text, start))
        if profile is not None and profile[-1] <= start:
            say(f"warning: nothing is traced: --profile ends with step {profile[-1]}, which is done")
        pulse.phase("compile")
        compiling.result()
        # Only now, as what a CPU could reach is measured, and a compiler beside it would take half of that.
        peak, again = flops.peak_flops(jax.devices()), lambda: flops.peak_flops(jax.devices())
        measure = again if jax.default_backend() == "cpu" else None
        speed = Throughput(flops.run_flops_per_token(cfg, model.specs), peak, measure)
        watchman = guard.Guard(cfg, folder, text, say)
        with (
            metrics.MetricsWriter(folder, cfg.log, total_steps, start or None) as writer,
            stream.batches(start) as batches,
            Profile(folder, profile) as profiler,
            Interrupt() as interrupt,
        ):

            def report(done: int, batch: data.Batch, values: dict[str, Any]) -> None:
                """Read the metrics of a dispatched step, which waits for it; end this attempt if it diverged."""
                watchman.check(done, batch, values)
                speed.count(stream.size(stream.number(batch.step)) * cfg.data.seq_len)
                due = done % cfg.log.every_steps == 0 or done in (start + 1, total_steps)
                if due or not float(values["tokens"]):  # of what is to be counted none is left out
                    writer.write(done, finish.metrics_row(values, rate) | speed.read())

            saves, failures = LenientSaves(checkpoints, say), 0
            late = runtime.dispatches_ahead()
            pending, stopping, done = None, False, start
            if witness is not None:
                witness(start, None, state)
            for done in range(start + 1, total_steps + 1):
                profiler.before(done)
                pulse.phase("data", done)
                with speed.waiting_for_data():
                    batch = next(batches)
                pulse.phase("step" if done > start + 1 else "compile", done)
                state, values = train_step(state, sharding.put_batch(batch.arrays, mesh, batch_size))
                profiler.after(done, values)
                if pending is not None:
                    report(*pending)  # of the step before, while this one runs
                pending = (done, batch, values)
                if witness is not None:
                    witness(done, batch, state)

                evaluating = bool(cfg.train.eval_every_steps) and done % cfg.train.eval_every_steps == 0
                polling = jax.process_count() == 1 or done % cfg.log.every_steps == 0
                stopping = polling and agreed(interrupt.requested) and done < total_steps
                saving = stopping or done == total_steps or checkpoints.should_save(done)
                if evaluating or saving or not late:
                    report(*pending)  # what is not finite is neither scored nor saved
                    pending = None
                if evaluating and done < total_steps:
                    with speed.paused():
                        writer.write(done, {f"eval/{name}": value for name, value in evaluate(state).items()})
                if saving:
                    pulse.phase("save", done)
                    saves.save(done, state, stream.state(done), saved_with)
                    if stopping or done == total_steps:
                        saves.wait()  # the last checkpoint is whole before the run is called complete, or stopped
                    if saves.failures > failures:
                        failures = saves.failures
                        writer.write(done, {"checkpoint/failed_saves": failures})
                if stopping:
                    break

            scores = {} if stopping else evaluate(state)
            if scores and not finish.scored(folder, total_steps):
                writer.write(total_steps, {f"eval/{name}": value for name, value in scores.items()})
        if saves.last_failed:
            say(f"the last checkpoint, of step {done}, could not be saved; the same command continues from the newest")
            return 4
        if stopping:
            say(f"stopped after step {done} with a checkpoint; the same command continues")
            # Of several processes, one that got no signal itself stops with those that did.
            return interrupt.exit_code or 143
        weights = state.params if state.ema is None else state.ema
        finish.write(cfg, folder, model, layout, weights, text, scores, speed.average())
    return 0


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES)
