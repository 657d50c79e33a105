"""What a run has saved, bit for bit."""

from pathlib import Path

import jax
import numpy as np

from bigjax import models, optim, sharding, step
from bigjax.checkpoint import Checkpoints
from bigjax.run_folder import RunFolder
from tests.conftest import mesh_of


def saved_state(workdir: Path) -> dict[str, bytes]:
    """Return the bytes of every array of the newest checkpoint, and its data state, by path."""
    cfg = RunFolder(workdir).load_config()
    mesh_cfg, mesh = mesh_of(1)
    model = models.build(cfg.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    with jax.set_mesh(mesh), Checkpoints(workdir / "checkpoints", cfg.checkpoint) as checkpoints:
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
        found = checkpoints.restore(step.abstract_state(cfg, model, tx, layout, mesh))
    leaves = jax.tree.leaves_with_path(found.state)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    return arrays | {"data": repr(found.data_state).encode()}
