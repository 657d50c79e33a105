"""Does a gate help?"""

from bigjax.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import grid


def get_config():
    return to_config_dict(
        Config(
            model=ModelConfig(
                family="my.model:gated",
                vocab_size=256,
                num_layers=1,
                d_model=16,
                num_heads=2,
                max_seq_len=32,
                gated={"strength": 0.5},
            ),
            data=DataConfig(sources=("my.source:numbers",), tokenizer="my.tokenizer:Letters", seq_len=32),
            train=TrainConfig(steps=4, global_batch_size=8, objective="my.task:weighted"),
            optim=OptimConfig(name="my.optimizer:signum", lr=1e-3),
            log=LogConfig(every_steps=1, plot=False, tensorboard=False),
        )
    )


def sweep(add):
    add(grid({"model.gated.strength": [0.5, 0.75]}))
