"""A recurrent run that was killed and continued, carried state included, cannot be told from one that was not."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax import models, sharding
from bigjax.checkpoint.saving import Checkpoints, Restored
from bigjax.run.folder import RunFolder
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests.commands import Commands, rows, shared_cache
from tests.conftest import mesh_of

TRAIN = "tests.witnessed_train"
STEPS = 9
SIZES = (
    "--config=configs/rnn.py:variational",
    "--config.model.d_model=16",
    "--config.data.seq_len=8",
    "--config.train.global_batch_size=4",
    "--config.train.microbatches=2",
    f"--config.train.steps={STEPS}",
    "--config.train.eval_every_steps=4",
    "--config.optim.warmup=1",
    "--config.checkpoint.every_steps=4",
    "--config.checkpoint.asynchronous=false",
    "--config.log.every_steps=1",
    "--config.log.sample_tokens=0",
    "--config.log.plot=false",
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> tuple[str, ...]:
    """Documents of a few rows each, and lanes that come round to their second epoch."""
    path, rng = tmp_path_factory.mktemp("texts") / "a.jsonl", random.Random(0)
    texts = ["".join(rng.choices("etaoin shrdlu", k=rng.randint(5, 40))) for _ in range(12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return (*SIZES, f"--config.data.sources=jsonl:{path}", "--config.data.holdout=0.2")


@pytest.fixture(scope="module")
def whole(commands, arguments, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    commands.run(TRAIN, folder / "record", "--", *arguments, f"--workdir={folder}/run")
    return folder


def last_checkpoint(folder: Path) -> Restored:
    cfg = RunFolder(folder / "run").load_config()
    mesh_cfg, mesh = mesh_of(1)
    model = models.build(cfg.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    with jax.set_mesh(mesh), Checkpoints(folder / "run" / "checkpoints", cfg.checkpoint) as checkpoints:
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
        return checkpoints.restore(step.abstract_state(cfg, model, tx, layout, mesh), STEPS)


@pytest.mark.exhaustive
def test_killed_and_resumed_is_the_same_run_bit_for_bit(commands, arguments, whole, tmp_path):
    run = (*arguments, f"--workdir={tmp_path}/run")
    commands.run(TRAIN, tmp_path / "record", "SIGKILL@6", "--", *run, code=-9)
    done = commands.run(TRAIN, tmp_path / "record", "--", *run)
    assert "resuming after step 4" in done.stderr
    assert rows(tmp_path / "run") == rows(whole / "run")
    here, there = last_checkpoint(tmp_path), last_checkpoint(whole)
    assert here.data_state == there.data_state
    assert here.data_state["order"] == "contiguous"
    assert here.data_state["sources"][0]["epoch"] >= 1
    assert np.abs(np.asarray(here.state.carried["h"])).max() > 0
    for (path, x), y in zip(jax.tree.leaves_with_path(here.state), jax.tree.leaves(there.state), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


@pytest.mark.exhaustive
def test_two_processes_train_the_same_model(commands, arguments, whole, tmp_path):
    """The lanes, and their states, are split between them; sums in another order differ by rounding."""
    commands.run_together(2, "experiments.train", *arguments, f"--workdir={tmp_path}/run", devices=1)
    here, there = rows(tmp_path / "run"), rows(whole / "run")
    assert [row["step"] for row in here] == [row["step"] for row in there]
    for row, expected in zip(here, there, strict=True):
        assert row == pytest.approx(expected, rel=1e-4), row["step"]
