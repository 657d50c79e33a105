"""The train step of a workload, on the same random batch again and again, as the launcher jits it."""

from collections.abc import Sequence

import jax
import numpy as np

from bigjax import models, sharding
from bigjax.config import Config
from bigjax.train import optimizers as optim
from bigjax.train import step


class Trainer:
    """A state and the step that advances it; the mesh stays set."""

    def __init__(self, cfg: Config, devices: Sequence[jax.Device] | None = None):
        """Compile the step and initialise the state, on the first device unless others are given."""
        self.mesh = sharding.make_mesh(cfg.mesh, list(devices or jax.devices()[:1]))
        jax.set_mesh(self.mesh)
        self.model = models.build(cfg.model)
        layout = sharding.layout(cfg.mesh, self.mesh, self.model.specs)
        tx = optim.build(cfg.optim, self.model.specs, cfg.train.steps)
        self._rows, S = cfg.train.global_batch_size, cfg.data.seq_len
        ids = np.random.default_rng(0).integers(0, cfg.model.vocab_size, (self._rows, S + 1), dtype=np.int32)
        self._arrays = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": np.ones((self._rows, S), np.float32)}
        self.abstract = step.abstract_state(cfg, self.model, tx, layout, self.mesh)
        self._step = step.jit_train_step(cfg, self.model, tx, layout)
        initial = step.init_aside(cfg, self.model, tx, layout)
        compiling = step.compile_aside(self._step.trace(self.abstract, self._batch()))
        self.state = initial.result()
        self.compiled = compiling.result()

    def advance(self, steps: int = 1) -> None:
        """Take some steps, one after the other without looking, and wait for the last."""
        metrics = {}
        for _ in range(steps):
            self.state, metrics = self._step(self.state, self._batch())
        jax.block_until_ready((self.state, metrics))

    def _batch(self) -> dict[str, jax.Array]:
        return sharding.put_batch(self._arrays, self.mesh, self._rows)
