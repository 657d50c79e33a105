"""At a fixed budget of compute, how large should a byte-level decoder of the depth family be?

    python -m experiments.sweep --config=experiments/studies/scaling/isoflop.py --workdir=runs/scaling_study/laws-grid

Five depths, of 10 thousand to 410 thousand parameters, at each of 2e11, 5e11 and 1.25e12 FLOPs (6ND), and two more
seeds at the centre.
"""

from ml_collections import ConfigDict

from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import Adder, seeds

from . import family

DEPTHS = {2e11: (2, 3, 4, 5, 6), 5e11: (2, 3, 4, 5, 6), 1.25e12: (3, 4, 5, 6, 8)}
"""Of every budget."""

CENTRE = (4, 5e11)


def get_config() -> ConfigDict:
    """Return the config that every point changes."""
    return to_config_dict(family.base())


def sweep(add: Adder) -> None:
    """Add every depth at every budget, the centre with three seeds."""
    for budget, depths in DEPTHS.items():
        for depth in depths:
            add([family.point(depth, budget)], seeds(3 if (depth, budget) == CENTRE else 1))
