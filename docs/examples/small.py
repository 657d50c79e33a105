"""Does everything that the documentation shows work? A decoder of bytes, so small that each command takes seconds."""

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import grid


def get_config():
    return to_config_dict(
        Config(
            model=ModelConfig(
                num_layers=2,
                d_model=32,
                num_heads=2,
                max_seq_len=128,
                positions="rotary",
                norm="rmsnorm",
                activation="swiglu",
                bias="none",
            ),
            data=DataConfig(seq_len=128, document_mask=False),
            train=TrainConfig(steps=40, global_batch_size=8, eval_batches=4),
            optim=OptimConfig(lr=4e-3, schedule="constant", warmup=4),
            checkpoint=CheckpointConfig(every_steps=10),
            log=LogConfig(every_steps=20, plot=False, tensorboard=False),
        )
    )


def sweep(add):
    add(grid({"optim.lr": [1e-3, 4e-3], "train.seed": [0, 1]}))
