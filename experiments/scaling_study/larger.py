"""Does the law that was fitted to the small budgets hold at four times the largest?

    python -m experiments.sweep --config=experiments/scaling_study/larger.py --workdir=runs/scaling_study/laws-larger

Three depths around the one that the fit proposes, at 5e12 FLOPs (6ND).
"""

from ml_collections import ConfigDict

from bigjax.science.sweeps import Adder
from bigjax.strict import to_config_dict
from experiments.scaling_study import family

BUDGET = 5e12
DEPTHS = (5, 6, 8)


def get_config() -> ConfigDict:
    """Return the config that every point changes."""
    return to_config_dict(family.base())


def sweep(add: Adder) -> None:
    """Add the depths, the one in the middle first."""
    for depth in sorted(DEPTHS, key=lambda depth: abs(depth - DEPTHS[1])):
        add([family.point(depth, BUDGET)])
