"""A trainer that trains nothing and is done at once, but may be killed at any step: `python -m tests.stand_in RUN`.

It is what a sweep sees of `experiments.train`: the same files, exit statuses, lock and heartbeat.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from bigjax.run import heartbeat, lease
from bigjax.run.json_files import write_json

STEPS = 6
ROOT = Path(__file__).resolve().parent.parent
SURFACE, PACE_S = "STAND_IN_SURFACE", "STAND_IN_PACE_S"
"""Environment variables: `bowl` for that loss, and the seconds that a step takes."""

DIVERGES, FAILS = 0.3, 0.2
KILLS = "STAND_IN_KILLS"
"""The environment variable with the share of starts that end by SIGKILL; at most the first three of a point do."""


def bowl(rate: float) -> float:
    """Return a loss that is least, 0, at a learning rate of 0.01."""
    return abs(math.log10(rate) + 2)


def loss_after(fingerprint: str, step: int) -> float:
    """Return a loss that depends on the run and the step."""
    return 1 / step + int(hashlib.sha256(f"{fingerprint}/{step}".encode()).hexdigest()[:4], 16) / 2**16


def train(folder: Path) -> int:
    """Train, or go on, in a run folder; return the exit status."""
    try:
        mine, _ = lease.take(folder / "trainer.lock")
    except lease.Taken:
        print("error: in use")
        return 2
    try:
        return 0 if (folder / "result.json").exists() else _train(folder)
    finally:
        lease.release(folder / "trainer.lock", mine)


def _train(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    fingerprint, rate = config["fingerprint"], config["config"]["optim"]["lr"]
    starts = _append(folder / "starts", "x")
    chance = random.Random(f"{fingerprint}/{starts}")
    killed_at = chance.randrange(1, STEPS + 1) if starts < 4 and chance.random() < float(os.environ[KILLS]) else None
    (folder / "environment.json").touch()
    metrics = folder / "metrics.jsonl"
    done = metrics.read_text().count("\n") if metrics.exists() else 0
    for step in range(done + 1, STEPS + 1):
        if heartbeat.FD in os.environ:
            os.write(int(os.environ[heartbeat.FD]), b"{}\n")
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if rate > DIVERGES and step == 3:
            print("error: step 3 is not finite")
            return 3
        if FAILS < rate <= DIVERGES and step == 2:
            raise RuntimeError("a bug")
        loss = bowl(rate) if SURFACE in os.environ else loss_after(fingerprint, step)
        row = {"step": step, "time_s": float(step), "train/loss": loss, "eval/loss": loss}
        _append(metrics, json.dumps(row) + "\n")
        time.sleep(float(os.environ.get(PACE_S, "0")))
    loss = bowl(rate) if SURFACE in os.environ else loss_after(fingerprint, STEPS)
    _append(folder / "finishes", "x")
    counts = {"steps": STEPS, "tokens": STEPS * 64, "params_total": 1000, "flops": 6e6, "wall_s": 1.0}
    write_json(folder / "result.json", counts | {"fingerprint": fingerprint, "eval_loss": loss, "train_loss": loss})
    return 0


def _append(path: Path, text: str) -> int:
    with path.open("a") as file:
        file.write(text)
        return file.tell()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(train(Path(sys.argv[1])))
    sys.exit(heartbeat.LOST)
