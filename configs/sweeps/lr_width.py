"""How does the best learning rate move with the width, when nothing else is scaled (no muP)?

    python -m experiments.sweep --config=configs/sweeps/lr_width.py --workdir=runs/lr_width

Twelve byte-level decoders of two layers on Shakespeare: widths 32, 64 and 128 at four learning rates, 4x apart, for 200
steps. With `--runner=vmap` those of one width train in one compiled program. It took 2 min 31 s on two busy cores with
`--processes=6` (JAX 0.10.2, 150 CPU-seconds). Expect 4e-3 to be the best rate at every width, with held-out losses of
2.510, 2.391 and 2.275 nats per byte; at 1e-3 the loss is above that by 0.57, 0.20 and 0.07: wider models bear smaller
rates better. One seed each says no more than that.
"""

from ml_collections import ConfigDict

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import Adder, Distribution, choice, grid, log_uniform

WIDTHS = (32, 64, 128)
RATES = (1e-3, 4e-3, 1.6e-2, 6.4e-2)


def get_config() -> ConfigDict:
    """Return the config that every point changes."""
    return to_config_dict(
        Config(
            model=ModelConfig(
                num_layers=2,
                d_model=64,
                num_heads=2,
                max_seq_len=64,
                positions="rotary",
                norm="rmsnorm",
                bias="none",
                layers="unroll",
            ),
            data=DataConfig(seq_len=64, document_mask=False),
            train=TrainConfig(steps=200, global_batch_size=16, eval_batches=8),
            optim=OptimConfig(schedule="cosine", warmup=0.1, weight_decay=0.0),
            checkpoint=CheckpointConfig(every_steps=100),
            log=LogConfig(tensorboard=False, plot=False),
        )
    )


def sweep(add: Adder) -> None:
    """Add every width at every learning rate."""
    add(grid({"model.d_model": WIDTHS, "optim.lr": RATES}))


def space() -> dict[str, Distribution]:
    """Return where `--search` looks."""
    return {"optim.lr": log_uniform(1e-4, 1e-1), "model.d_model": choice(WIDTHS)}
