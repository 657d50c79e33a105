"""16 tiny points as one compiled program against processes of their own: `python -m benchmarks.sweep` prints JSON.

The points are learning rates and seeds of `configs/sweeps/lr_width.py`. Each way runs `experiments.sweep` from start to
end in an empty folder with an empty compilation cache, in turns: `vmap` in one program, `processes` in 16 processes at
once. Figures are medians: `seconds` by the clock, `cpu_seconds` of all processes, and their `ratio` to those of `vmap`.
On a machine with other work the clock favours many processes, which get a larger share of it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = """
from bigjax.science.sweeps import grid, seeds
from configs.sweeps.lr_width import get_config


def sweep(add):
    add(grid({"optim.lr": [1e-3, 2e-3, 4e-3, 8e-3, 1e-2, 2e-2, 4e-2, 8e-2]}), seeds(2))
"""


def one_turn(file: Path, folder: Path, steps: int, flags: list[str]) -> tuple[float, float]:
    """Run the sweep; return seconds by the clock and of the processors."""
    command = [sys.executable, "-m", "experiments.sweep", f"--config={file}", f"--workdir={folder}"]
    changes = [f"--config.train.steps={steps}", "--config.log.every_steps=50"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    empty = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    subprocess.run([*command, *changes, *flags], check=True, capture_output=True, env=empty)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure the runners of a sweep; one line of JSON.")
    parser.add_argument("--runs", type=int, default=3, help="turns")
    parser.add_argument("--steps", type=int, default=200, help="steps of each point")
    arguments = parser.parse_args()
    ways = {"vmap": ["--runner=vmap"], "processes": ["--runner=local", "--processes=16"]}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "points.py")
        file.write_text(SWEEP)
        for turn in range(arguments.runs):
            for name, flags in ways.items():
                measured[name].append(one_turn(file, Path(folder, f"{name}-{turn}"), arguments.steps, flags))
    figures: dict[str, float] = {}
    for name, turns in measured.items():
        for kind, index in (("seconds", 0), ("cpu_seconds", 1)):
            figures[f"{name}/{kind}"] = statistics.median(turn[index] for turn in turns)
            ratios = (turn[index] / alone[index] for turn, alone in zip(turns, measured["vmap"], strict=True))
            figures[f"{name}/{kind}/ratio"] = statistics.median(ratios)
    setting = {"runs": arguments.runs, "steps": arguments.steps, "points": 16, "cpus": os.cpu_count()}
    print(json.dumps(setting | {name: round(value, 2) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
