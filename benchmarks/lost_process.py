"""How long until a group notices that one of its processes is gone: `python -m benchmarks.lost_process` prints JSON.

A tiny run of 2 and of 4 processes on this machine trains until one of them, at a random step, gets SIGKILL or SIGSTOP.
The seconds are from the signal until the command has ended with status 6; what is stopped counts as lost after
`--peer_timeout_s`, 40 by default. Each figure is the median of the turns, with the least and the most.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = {
    "data.tokenizer": "bytes",
    "data.seq_len": 32,
    "model.vocab_size": 256,
    "model.num_layers": 1,
    "model.d_model": 32,
    "model.num_heads": 2,
    "train.global_batch_size": 8,
    "train.steps": 1_000_000,
    "train.eval_every_steps": 0,
    "optim.warmup": 1,
    "log.every_steps": 1,
    "log.sample_tokens": 0,
    "checkpoint.every_steps": 20,
}

LOST = 6


def main() -> None:
    """Read the command line, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    found = {}
    for name in ("SIGKILL", "SIGSTOP"):
        for count in (2, 4):
            turns = [seconds(count, signal.Signals[name], turn) for turn in range(args.turns)]
            found[f"{name.lower()}_{count}_s"] = [round(f(turns), 1) for f in (statistics.median, min, max)]
    print(json.dumps({"turns": args.turns, "cpus": os.cpu_count(), **found}))


def seconds(count: int, number: signal.Signals, turn: int) -> float:
    """Return how long a group of `count` processes takes to end after one got a signal."""
    chance = random.Random(f"{count} {number} {turn}")
    with tempfile.TemporaryDirectory() as folder:
        fields = [f"--config.{name}={value}" for name, value in TINY.items()]
        command = [sys.executable, "-m", "experiments.train", "--config=configs/quickstart.py", *fields]
        command += [f"--num_processes={count}", f"--workdir={folder}/run"]
        group = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            metrics, step = Path(folder, "run", "metrics.jsonl"), chance.randrange(5, 40)
            while not metrics.exists() or metrics.read_text().count("\n") < step:
                if group.poll() is not None:
                    raise RuntimeError(f"the group ended early: {group.communicate()[1]}")
                time.sleep(0.02)
            os.kill(chance.choice(children(group.pid)), number)
            start = time.perf_counter()
            said = group.communicate()[1]
            took = time.perf_counter() - start
        finally:
            group.kill()
    if group.returncode != LOST:
        raise RuntimeError(f"the group ended with status {group.returncode}, not {LOST}: {said}")
    return took


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    main()
