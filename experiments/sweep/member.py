"""One point among those that train as one program: its data, guard and files, which are those of a run by itself."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bigjax import data, models, sharding
from bigjax.checkpoint import saving as checkpoint
from bigjax.config import Config, MeshConfig
from bigjax.interop.hf import origin as hf_origin
from bigjax.run import lock as run_lock
from bigjax.run import metrics
from bigjax.run.children import Ended
from bigjax.run.folder import RunFolder
from bigjax.science.sweeps import Point
from bigjax.train import guard, rollback, step
from bigjax.train import optimizers as optim

from .. import finish
from .launch import Outcome, outcome_of


class Alone:
    """What every point of a program is by itself, on one device: its model, layout and the shapes of its state."""

    def __init__(self, cfg: Config):
        self.mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
        self.model = models.build(cfg.model)
        self.layout = sharding.layout(MeshConfig(), self.mesh, self.model.specs)
        tx = optim.build(cfg.optim, self.model.specs, cfg.train.steps)
        self.state = step.abstract_state(cfg, self.model, tx, self.layout, self.mesh)

    def apart(self, tree: Any, count: int) -> list[Any]:
        """Return the first parts of a stacked tree, each on one device."""
        host, where = jax.device_get(tree), jax.sharding.NamedSharding(self.mesh, jax.P())
        return [jax.tree.map(lambda x: jax.device_put(np.array(x[i]), where), host) for i in range(count)]  # noqa: B023


class Member:
    """One point of a program. Its files are closed with `files`.

    Attributes:
      outcome: how it ended, None as long as it has not.
    """

    def __init__(self, point: Point, folder: RunFolder, files: contextlib.ExitStack, say: Callable[[str], None]):
        self.point, self.cfg, self.folder = point, point.cfg, folder
        self.outcome: Outcome | None = None
        self._files, self._say = files, say
        files.enter_context(run_lock.held(folder.path))
        self.text = data.build(self.cfg, slice(0, self.cfg.train.global_batch_size))
        self._stream = self.text.train.leaving_out(rollback.left_out(folder))
        self._rate = optim.looked_up(optim.schedule(self.cfg.optim, self.cfg.train.steps))
        self._checkpoints = files.enter_context(checkpoint.Checkpoints(folder.checkpoints, self.cfg.checkpoint))

    def restore(self, alone: Alone, start: int) -> step.TrainState:
        """Return the state of the checkpoint of a step.

        Raises:
          UserError: it is damaged or of another model, or its data is another.
        """
        with jax.set_mesh(alone.mesh):
            restored = self._checkpoints.restore(alone.state, start)
        self._stream = self.text.train.leaving_out(rollback.left_out(self.folder, restored.data_state))
        self._stream.check(restored.data_state)
        return restored.state

    def open(self, start: int) -> None:
        """Open the run folder, and the stream of batches from a step on."""
        cfg, folder = self.cfg, self.folder
        folder.open(cfg)
        self._signature = folder.signature(cfg)
        data.save_processor(self.text.tokenizer, folder.path)
        hf_origin.keep(hf_origin.start_of(cfg), folder.path)
        folder.write_data(self.text.describe())
        rollback.note(folder, self._stream.left_out)
        self._guard = guard.Guard(cfg, folder, dataclasses.replace(self.text, train=self._stream), self._say)
        self.batches = self._files.enter_context(self._stream.batches(start))
        writer = metrics.MetricsWriter(folder, cfg.log, cfg.train.steps, start or None, progress=False)
        self.writer = self._files.enter_context(writer)

    def report(self, done: int, batch: data.Batch, values: dict[str, Any], rates: dict[str, float] | None) -> None:
        """Look at the metrics of a step, which ends this point alone if it diverged; write them, if given `rates`."""
        try:
            self._guard.check(done, batch, values)
        except guard.Diverged as error:
            self.outcome = Outcome("diverged", error.exit_code, str(error))
            return
        if rates is not None or not float(values["tokens"]):
            self.writer.write(done, finish.metrics_row(self.cfg, values, self._rate) | (rates or {}))

    def score(self, done: int, scores: dict[str, float]) -> None:
        """Write the scores of a step, but for the last step's that an earlier session wrote."""
        if scores and not (done == self.cfg.train.steps and finish.scored(self.folder, done)):
            self.writer.write(done, finish.scores_row(scores))

    def save(self, done: int, state: step.TrainState) -> None:
        """Save the checkpoint that a run by itself would have."""
        self._checkpoints.save(done, state, self._stream.state(done), self._signature)

    def finish(self, alone: Alone, weights: Any, scores: dict[str, float], tokens_per_s: float | None) -> None:
        """Write what a run leaves at its end, once its last checkpoint is whole."""
        with jax.set_mesh(alone.mesh):
            self._checkpoints.wait()
            finish.write(self.cfg, self.folder, alone.model, alone.layout, weights, self.text, scores, tokens_per_s)
        self.outcome = outcome_of(self.folder, Ended(0, ""))
