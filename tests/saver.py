"""A process that does nothing but save and is meant to be killed: many of them, each forked in a moment.

`fork(folder)` starts one. They are forked from a server that has imported JAX and Orbax but not started a backend.
"""

import multiprocessing
import os
from multiprocessing.process import BaseProcess

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as _  # noqa: F401 - imported here, once, and not in every child

from bigjax.checkpoint.saving import Checkpoints
from bigjax.config import CheckpointConfig
from bigjax.paths import AnyPath

SHAPES = {"small": (3,), "matrix": (64, 64), "large": (512, 1024)}
"""Arrays of 12 bytes, 16 kB and 2 MB, so that a save takes a while and several files."""

KEEP = 2


def state_after(step: int) -> dict[str, jax.Array]:
    """Return a state that says which step it is of."""
    return {name: jnp.full(shape, step, jnp.int32) for name, shape in SHAPES.items()}


def newest(folder: AnyPath) -> int:
    """Return the step of the newest checkpoint, every element of which must be of that step; 0 if there is none."""
    sharding = jnp.zeros(()).sharding
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name, shape in SHAPES.items()}
    with Checkpoints(folder, CheckpointConfig(keep_last=KEEP)) as checkpoints:
        if not checkpoints.resumable():
            return 0
        found = checkpoints.restore(abstract)
    assert found.data_state == {"next_step": found.step}
    for array in jax.tree.leaves(found.state):
        np.testing.assert_array_equal(array, found.step)
    return found.step


def save_on_and_on(folder: AnyPath, variables: dict[str, str]) -> None:
    """Go on from the newest checkpoint, saving step after step in the background, until killed."""
    os.environ.update(variables)
    step = newest(folder)
    with Checkpoints(folder, CheckpointConfig(keep_last=KEEP)) as checkpoints:
        while True:
            step += 1
            checkpoints.save(step, state_after(step), {"next_step": step}, {})


def fork(folder: AnyPath, variables: dict[str, str] | None = None) -> BaseProcess:
    """Start a process that saves in `folder`, with some more environment variables."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.saver"])
    process = context.Process(target=save_on_and_on, args=(folder, variables or {}))
    process.start()
    return process
