"""How well do a few numbers about a patient predict how a disease goes on? The diabetes data of scikit-learn.

Run `python -m experiments.train --config=configs/regression.py`.
"""

from ml_collections import ConfigDict

from bigjax.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import to_config_dict


def get_config() -> ConfigDict:
    """Return the config."""
    return to_config_dict(
        Config(
            model=ModelConfig(family="mlp", num_layers=1, d_model=32, activation="relu"),
            data=DataConfig(sources=("sklearn:diabetes",), seq_len=1, holdout=0.2),
            train=TrainConfig(objective="regression", steps=200, global_batch_size=32, eval_every_steps=50),
            optim=OptimConfig(name="adamw", lr=3e-3, weight_decay=0.1),
            checkpoint=CheckpointConfig(every_steps=100),
        )
    )
