"""The train step of a config on a mesh that need not exist: everything abstract, ready to be traced and compiled."""

from dataclasses import dataclass
from typing import Any

import jax

from bigjax import models, sharding
from bigjax.config import Config, replace
from bigjax.models import Model
from bigjax.sharding import Layout
from bigjax.tasks import random_batch
from bigjax.train import optimizers as optim
from bigjax.train import step
from bigjax.train.step import TrainState


@dataclass(frozen=True)
class Program:
    """A config on a mesh, concrete or abstract, with the shapes, dtypes and shardings of the step's two arguments."""

    cfg: Config
    mesh: Any
    model: Model
    layout: Layout
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]

    def trace(self) -> Any:
        """Return the traced train step, its state donated; `.lower(...)` comes next."""
        tx = optim.build(self.cfg.optim, self.model.specs, self.cfg.train.steps)
        train_step = step.make_train_step(self.cfg, self.model, tx, self.layout)
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return jax.jit(train_step, donate_argnums=0).trace(self.state, self.batch)


def build(cfg: Config, mesh: Any) -> Program:
    """Check that `cfg` fits `mesh` and describe its step there.

    Raises:
      ShardingError: as in `sharding.fit`.
    """
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs)
    tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
    state = step.abstract_state(cfg, model, tx, layout, mesh)
    alone = {"global_batch_size": 1, "microbatches": 1, "ramp_batch_size": 0, "ramp_tokens": 0}
    one_row = random_batch(replace(cfg, train=alone))
    batch = {}
    for name, x in one_row.items():
        shape = (cfg.train.global_batch_size, *x.shape[1:])
        batch[name] = jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding.batch_sharding(mesh, x.ndim))
    return Program(cfg, mesh, model, layout, state, batch)
