"""Does the law that was fitted to the small budgets hold at four times the largest?

    python -m experiments.sweep --config=experiments/studies/scaling/larger.py --workdir=runs/scaling_study/laws-larger

Depth 5 at 5e12 FLOPs (6ND): the size that the parametric law of the grid proposes there.
"""

from ml_collections import ConfigDict

from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import Adder

from . import family

DEPTH, BUDGET = 5, 5e12


def get_config() -> ConfigDict:
    """Return the config that every point changes."""
    return to_config_dict(family.base())


def sweep(add: Adder) -> None:
    """Add the one run."""
    add([family.point(DEPTH, BUDGET)])
