"""A trained run, ready to be used: what the commands that read a run folder share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from bigjax import checkpoint, models, optim, sharding, step
from bigjax.config import Config
from bigjax.models import Model
from bigjax.run_folder import RunFolder
from bigjax.sharding import Layout


@dataclass(frozen=True)
class Trained:
    """A run's config, its model on this machine's mesh, and the weights of its newest checkpoint."""

    cfg: Config
    folder: RunFolder
    mesh: jax.sharding.Mesh
    model: Model
    layout: Layout
    step: int
    weights: Any


def load(workdir: Path, cfg: Config) -> Trained:
    """Load the newest checkpoint in `workdir` onto the devices at hand: the averaged weights if the run keeps them.

    `cfg` is the recorded config, whose plumbing, such as the mesh, may have been changed.

    Raises:
      UserError: there is no complete checkpoint, or the mesh does not fit the devices.
    """
    folder = RunFolder(workdir)
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.layout(cfg.mesh, mesh, model.specs)
    tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
    abstract = step.abstract_state(cfg, model, tx, layout, mesh)
    part = "params" if abstract.ema is None else "ema"
    found, weights = checkpoint.restore_part(folder.checkpoints, part, getattr(abstract, part))
    return Trained(cfg, folder, mesh, model, layout, found, weights)
