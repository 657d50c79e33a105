"""The loss and the train step of a config as functions of arrays, on one device or on the mesh that is set.

Legend: B batch, S sequence.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import models, sharding
from bigjax.config import Config
from bigjax.sharding import UNSHARDED, Layout, ShardingError
from bigjax.train import optimizers, step
from bigjax.train.step import TrainState

Batch = Mapping[str, Any]
"""Arrays by name, as the objective reads them; of a language model `tokens`, `targets` and `weights` `(B, S)`."""


class TrainFunctions(NamedTuple):
    """What a run consists of.

    Attributes:
      init: `()` -> the state before the first step, a pure function of `train.seed`.
      step: `(state, batch)` -> (the state after a step, its metrics); the state given to it is used up. A batch has
        `train.global_batch_size` rows; of several processes, each gives its own.
    """

    init: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]


def build(cfg: Config) -> TrainFunctions:
    """Return the two functions of a run, compiled, on one device or on the mesh that `jax.set_mesh` has set.

    Raises:
      ShardingError: the mesh, the model and the batch do not fit each other; or `cfg.mesh` wants several devices and no
        mesh is set. `step` raises it for a batch of another number of rows.
    """
    model, mesh = models.build(cfg.model), jax.sharding.get_mesh()
    wanted = [f"mesh.{axis}={size}" for axis, size in cfg.mesh.sizes.items() if size > 1]
    if mesh.empty and wanted:
        raise ShardingError(f"{wanted[0]}, but no mesh is set: use jax.set_mesh(bigjax.make_mesh(cfg.mesh))")
    layout = UNSHARDED if mesh.empty else sharding.fit(cfg, mesh, model.specs)
    tx = optimizers.build(cfg.optim, model.specs, cfg.train.steps)
    train_step, rows = step.jit_train_step(cfg, model, tx, layout), cfg.train.global_batch_size
    mine = slice(0, rows) if mesh.empty else sharding.local_rows(mesh, rows)

    def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        arrays = {name: np.asarray(x) for name, x in batch.items()}
        for name, x in arrays.items():
            if len(x) != mine.stop - mine.start:
                wanted = f"{mine.stop - mine.start}, of train.global_batch_size={rows}"
                raise ShardingError(f"batch array {name} has {len(x)} rows, not {wanted}")
        return train_step(state, arrays if mesh.empty else sharding.put_batch(arrays, mesh, rows))

    return TrainFunctions(step.jit_init_state(cfg, model, tx, layout), one_step)


def loss(params: Any, batch: Batch, cfg: Config, layout: Layout | None = None) -> jax.Array:
    """Return what training minimises, `()` float32, for language models in nats per weighted token; without dropout.

    Args:
      layout: where each axis lives; by default on the mesh that `jax.set_mesh` has set, if any.
    """
    model = models.build(cfg.model)
    layout = model.on_the_mesh(cfg.mesh) if layout is None else layout
    placed = {name: layout.place(x, "batch", *["seq"] * (x.ndim - 1)) for name, x in _arrays(batch).items()}
    sums, _ = step.make_eval_step(cfg, model, layout)(params, placed)
    total, count = sums["loss"]
    return total / count


def _arrays(batch: Batch) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x) for name, x in batch.items()}
