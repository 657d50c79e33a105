"""An encoder-decoder's run that was killed and continued cannot be told from one that was not.

Spans are corrupted afresh in each of several epochs; dropout, microbatches and averaged weights are on.
"""

import json
import random

import pytest

from tests.commands import Commands, rows, shared_cache
from tests.finished_runs import assert_same_run

TRAIN = "tests.witnessed_train"
STEPS = 20


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> tuple[str, ...]:
    path, rng = tmp_path_factory.mktemp("texts") / "a.jsonl", random.Random(0)
    texts = ["".join(rng.choices("etaoin shrdlu", k=rng.randint(20, 60))) for _ in range(30)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return (
        "--config=configs/t5.py:tiny",
        "--config.model.d_model=16",
        "--config.model.head_dim=8",
        "--config.model.d_ff=24",
        "--config.model.dropout=0.1",
        "--config.data.seq_len=24",
        "--config.data.target_len=12",
        f"--config.data.sources=jsonl:{path}",
        "--config.data.holdout=0.2",
        "--config.train.global_batch_size=8",
        "--config.train.microbatches=2",
        f"--config.train.steps={STEPS}",
        "--config.train.eval_every_steps=5",
        "--config.train.eval_batches=2",
        "--config.optim.warmup=2",
        "--config.optim.ema_decay=0.9",
        "--config.checkpoint.every_steps=10",
        "--config.checkpoint.asynchronous=false",
        "--config.log.every_steps=1",
        "--config.log.plot=false",
        "--config.log.tensorboard=false",
    )


@pytest.mark.exhaustive
def test_killed_and_resumed_is_the_same_run_bit_for_bit(commands, arguments, tmp_path):
    run = {name: (*arguments, f"--workdir={tmp_path}/{name}") for name in ("whole", "killed")}
    commands.run("experiments.train", *run["whole"])
    commands.run(TRAIN, tmp_path / "record", "SIGKILL@12", "--", *run["killed"], code=-9)
    done = commands.run("experiments.train", *run["killed"])
    assert "resuming after step 10" in done.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    losses = [row["train/loss"] for row in rows(tmp_path / "whole") if "train/loss" in row]
    assert len(set(losses)) == STEPS
