"""Which parts of the block does the depth family owe its loss to, beyond the noise of the seed?

    python -m experiments.sweep --config=experiments/studies/scaling/ablation.py --workdir=runs/scaling_study/ablation

Depth 4 at 5e11 FLOPs of the baseline (every row takes as many steps), one factor changed at a time, three seeds each.
"""

from ml_collections import ConfigDict

from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import Adder, ablation, seeds

from . import family

ROWS = {
    "gelu": {"model.activation": "gelu_tanh"},
    "layernorm": {"model.norm": "layernorm"},
    "no qk norm": {"model.qk_norm": False},
    "learned positions": {"model.positions": "learned"},
    "untied embeddings": {"model.tie_embeddings": False},
}


def get_config() -> ConfigDict:
    """Return the config that every point changes."""
    return to_config_dict(family.base())


def sweep(add: Adder) -> None:
    """Add the baseline and its rows, with three seeds each."""
    add(ablation(family.point(4, 5e11).values, ROWS), seeds(3))
