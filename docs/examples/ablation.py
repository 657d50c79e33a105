"""Which parts of the small decoder does its loss need, beyond the noise of the seed?"""

from small import get_config as get_config

from bigjax.science.sweeps import ablation, seeds

ROWS = {
    "layernorm": {"model.norm": "layernorm"},
    "learned positions": {"model.positions": "learned"},
    "rate 1e-4": {"optim.lr": 1e-4},
}


def sweep(add):
    add(ablation({}, ROWS), seeds(2))
