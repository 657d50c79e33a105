"""A launch of 200 points with a trainer that trains nothing, two at a time: `python -m tests.stand_in_sweep FOLDER`."""

import sys
from pathlib import Path

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, strict
from bigjax.run.folder import RunFolder
from bigjax.science import sweeps
from bigjax.science.sweeps import Point, grid, seeds
from bigjax.science.sweeps.folder import SweepFolder
from experiments.sweep import local as sweep_local
from experiments.sweep.launch import Launch
from tests.stand_in import STEPS

RATES = [round(1e-3 * 1.13**i, 6) for i in range(50)]


def points() -> list[Point]:
    """Return 200 points: 50 learning rates, some of which fail or diverge, with 4 seeds each."""
    base = Config(ModelConfig(d_model=32), DataConfig(seq_len=32), TrainConfig(steps=STEPS, global_batch_size=2))
    return sweeps.collect(lambda add: add(grid({"optim.lr": RATES}), seeds(4)), strict.to_config_dict(base))


def command(run: RunFolder) -> list[str]:
    """Return the command of the trainer; without site-packages, it starts in a tenth of the time."""
    return [sys.executable, "-S", "-m", "tests.stand_in", str(run.path)]


if __name__ == "__main__":
    sweep_local.run(Launch(SweepFolder(Path(sys.argv[1])), points()), 2, lambda: None, command)
