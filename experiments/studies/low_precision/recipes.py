"""What do int8 and fp8 products, and moments in bfloat16, cost in loss against bfloat16, beyond the noise of the seed?

    python -m experiments.sweep --config=experiments/studies/low_precision/recipes.py --workdir=runs/low_precision \\
        --runner=vmap

Byte-level decoders of three layers, 64 wide, on Shakespeare: 300 steps of 512 bytes, three seeds a row. It needs the
extra `quant`.
"""

from ml_collections import ConfigDict

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import Adder, ablation, seeds

ROWS = {
    "int8": {"model.matmul": "int8"},
    "int8 spared": {"model.matmul": "int8", "model.matmul_spared_blocks": 1},
    "fp8": {"model.matmul": "fp8"},
    "bfloat16 moments": {"optim.moments_dtype": "bfloat16", "optim.stochastic_rounding": True},
}


def get_config() -> ConfigDict:
    """Return the config that every point changes."""
    return to_config_dict(
        Config(
            model=ModelConfig(
                num_layers=3,
                d_model=64,
                num_heads=4,
                max_seq_len=64,
                positions="rotary",
                norm="rmsnorm",
                activation="relu_squared",
                bias="none",
                dtype="bfloat16",
            ),
            data=DataConfig(seq_len=64, document_mask=False),
            train=TrainConfig(steps=300, global_batch_size=8, eval_batches=64),
            optim=OptimConfig(lr=4e-3, schedule="cosine", warmup=0.1, weight_decay=0.0),
            checkpoint=CheckpointConfig(every_steps=1000),
            log=LogConfig(every_steps=50, tensorboard=False, plot=False),
        )
    )


def sweep(add: Adder) -> None:
    """Add the baseline and its rows, with three seeds each."""
    add(ablation({}, ROWS), seeds(3))
