"""Where a training run starts, and what it says and writes before its first step."""

import dataclasses
from typing import Any

import jax

from bigjax import data, params, sharding
from bigjax.checkpoint import Checkpoints
from bigjax.config import Config, lengths
from bigjax.data import TextData
from bigjax.interop.hf import origin
from bigjax.models import Model
from bigjax.preflight.plan import defaults
from bigjax.run import RunFolder, Throughput, say
from bigjax.run.heartbeat import Pulse
from bigjax.sharding import Layout
from bigjax.tasks import named_task
from bigjax.train import continuation, flops, rollback, step

from . import finish, trained


def on_devices(cfg: Config) -> tuple[Config, tuple[str, ...]]:
    """Return the run as the devices at hand resolve what is `auto` in it, and what is said of that.

    Raises:
      UserError: as `defaults.resolved`.
    """
    resolved, chosen = defaults.here(cfg, jax.devices())
    return resolved, defaults.notes(chosen)


def text_of(cfg: Config, model: Model, mesh: jax.sharding.Mesh) -> TextData:
    """Return the data of this process, after checking that the sample after the run will fit the model.

    Raises:
      DataError: the data cannot be used. GenerationError: the sample does not fit.
    """
    text = data.build(cfg, sharding.local_rows(mesh, cfg.train.global_batch_size))
    finish.check_sample(cfg, model, text)
    return text


def is_complete(cfg: Config, folder: RunFolder) -> bool:
    """Return whether the folder holds the finished run of `cfg`, and say so if it does."""
    folder.check_text(cfg)
    complete = folder.complete and folder.is_of(cfg)
    if complete:
        say(f"{folder.path} is complete: {finish.summary(folder)}")
    return complete


class Start:
    """Where a run starts: its newest checkpoint, else the state that `init_state` names, else new parameters.

    New parameters are those that `init_from` names, if it does. What is wrong with the names is raised here, before
    anything is compiled. What has to be computed is begun here, in a thread of its own, and done when it is asked for.

    Args:
      checkpoints: of the run. abstract: the shapes of its state. text: its data, nothing left out yet.

    Raises:
      UserError: as `continuation.check_branch` and `trained.initial_params`.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoints: Checkpoints,
        model: Model,
        tx: Any,
        layout: Layout,
        abstract: step.TrainState,
        text: TextData,
    ):
        self._text, self._restore = text, None
        if checkpoints.resumable():
            self._restore = lambda: checkpoints.restore(abstract)
        elif cfg.init_state is not None:
            continuation.check_branch(cfg)
            self._restore = lambda: continuation.restore_branch(cfg, abstract)
        else:
            given = cfg.init_from is not None
            self._params = trained.initial_params(cfg, abstract.params, text) if given else None
            self._initializing = step.init_aside(cfg, model, tx, layout)

    def state(self, folder: RunFolder, pulse: Pulse) -> tuple[step.TrainState, int, TextData]:
        """Return the state, how many steps have led to it, and the data without the batches that are left out.

        Raises:
          UserError: the checkpoint is damaged, or of another model or data.
        """
        if self._restore is not None:
            pulse.phase("restore")
            restored = self._restore()
            stream = self._text.train.leaving_out(rollback.left_out(folder, restored.data_state))
            stream.check(restored.data_state)
            state, start = restored.state, restored.step
        else:
            stream = self._text.train.leaving_out(rollback.left_out(folder))
            state, start = self._initializing.result(), 0
            if self._params is not None:
                state = step.with_params(state, self._params)
        return state, start, dataclasses.replace(self._text, train=stream)


def throughput(cfg: Config, model: Model) -> Throughput:
    """Return what measures the speed of a run, against what its devices can do.

    That of a CPU is measured, now and again later: another program that runs for a moment would make it look slow.
    """
    devices = jax.devices()
    again = (lambda: flops.peak_flops(devices)) if devices[0].platform == "cpu" else None
    return Throughput(
        flops.run_flops_per_token(cfg, model.specs), flops.peak_flops(devices), again, unit=named_task(cfg).unit
    )


def open_folder(cfg: Config, folder: RunFolder, layout: Layout, text: TextData) -> None:
    """Write what the run is into its folder: config, environment, data and what is left out of it, tokenizer, code."""
    folder.open(cfg, continuation.LENGTHS, layout.notes)
    rollback.note(folder, text.train.left_out)
    if jax.process_index() == 0:
        data.save_processor(text.tokenizer, folder.path)
        origin.keep(origin.start_of(cfg), folder.path)
        folder.write_data(text.describe())
        folder.keep_code(cfg)


def _content(cfg: Config, sizes: dict[str, int]) -> str:
    if named_task(cfg).unit == "rows":
        return f"{sizes['documents']:,} rows"
    # Of stored tokens nobody may know how many bytes of text and how many documents they were.
    beside = [f"{sizes[name]:,} {name}" for name in ("bytes", "documents") if sizes[name]]
    return ", ".join([f"{sizes['tokens']:,} tokens", *beside])


def banner(
    cfg: Config,
    model: Model,
    mesh: jax.sharding.Mesh,
    layout: Layout,
    text: TextData,
    start: int,
    profile: range | None,
) -> str:
    """Return the lines printed before the first step: model, mesh, data, and where the run continues."""
    sizes, facts = params.counts(model.specs, cfg.model.moe.experts_per_token), text.describe()
    active = f", {sizes['params_active']:,} active for a token" if "params_active" in sizes else ""
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    train = {key: sum(source[key] for source in facts["train"]) for key in ("documents", "tokens", "bytes")}
    lines = [
        f"model: {sizes['params_total']:,} parameters, {sizes['params_non_embedding']:,} without embeddings{active}",
        f"mesh: {axes} ({mesh.devices.flat[0].device_kind})",
        f"data: {_content(cfg, train)}; "
        f"{text.train.rows_taken(cfg.train.steps) / facts['rows_per_epoch']:.2f} epochs in {cfg.train.steps:,} steps",
        *(f"note: {note}" for note in (*lengths.notes(cfg), *layout.notes, *text.notes)),
    ]
    if cfg.init_state is not None and start == continuation.origin(cfg).step:
        lines.append(f"branching off {cfg.init_state}")
    elif start:
        lines.append(f"resuming after step {start:,}")
    if profile is not None and profile[-1] <= start:
        lines.append(f"warning: nothing is traced: --profile ends with step {profile[-1]}, which is done")
    return "\n".join(lines)
