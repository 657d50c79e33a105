"""Runs of 40 steps by the launcher, and whether two of them ended the same."""

from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax import models, sharding
from bigjax.checkpoint.digests import verify
from bigjax.checkpoint.saving import Checkpoints, Restored
from bigjax.run.folder import RunFolder
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests.commands import TINY, Commands, read, rows, shared_cache
from tests.conftest import mesh_of

STEPS = 40
CONFIG = (*TINY, f"--config.train.steps={STEPS}", "--config.train.eval_every_steps=20")
RUN = (*CONFIG, "--config.checkpoint.every_steps=10", "--config.checkpoint.keep_last=3")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory) -> Path:
    """A run of 40 steps with checkpoints 20, 30 and 40."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    commands.run("experiments.train", *RUN, f"--workdir={workdir}")
    assert [(report.step, report.problems) for report in verify(workdir / "checkpoints")] == [
        (40, ()),
        (30, ()),
        (20, ()),
    ]
    return workdir


def last_checkpoint(workdir: Path) -> Restored:
    """Return the checkpoint of a run's last step, on one device."""
    cfg = RunFolder(workdir).load_config()
    mesh_cfg, mesh = mesh_of(1)
    model = models.build(cfg.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    with jax.set_mesh(mesh), Checkpoints(workdir / "checkpoints", cfg.checkpoint) as checkpoints:
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
        return checkpoints.restore(step.abstract_state(cfg, model, tx, layout, mesh), cfg.train.steps)


def assert_same_run(workdir: Path, whole: Path) -> None:
    """Compare all that does not depend on the clock, bit for bit."""
    assert rows(workdir) == rows(whole)
    here, there = last_checkpoint(workdir), last_checkpoint(whole)
    assert here.data_state == there.data_state
    assert here.identity["fingerprint"] == there.identity["fingerprint"]
    leaves, expected = (jax.tree.leaves_with_path(found.state) for found in (here, there))
    assert len(leaves) > 20
    for (path, x), (_, y) in zip(leaves, expected, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    results = [read(run / "result.json") for run in (workdir, whole)]
    for name in ("train_loss", "eval_loss", "eval_bits_per_byte", "eval_tokens", "steps", "tokens"):
        assert results[0][name] == results[1][name], name
