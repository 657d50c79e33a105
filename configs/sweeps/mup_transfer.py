"""Does the best learning rate of a narrow model serve wide ones: by the standard parametrization, and by muP?

    python -m experiments.sweep --config=configs/sweeps/mup_transfer.py --workdir=runs/mup_transfer --runner=vmap

56 byte-level decoders of two layers on Shakespeare: widths 32 to 256 with heads of 16, by the standard parametrization
and by muP with the base 32, at seven learning rates of Adam, 2x apart, for 300 steps of 512 tokens. At the base width
the two are the same model. Those of one width and parametrization train in one compiled program.

It took 8 minutes on two cores (JAX 0.10.2). The best rate, by a parabola, was 2^-6.5 at width 32, and by the standard
parametrization 2^-7.1, 2^-8.3 and 2^-9.2 at the others, but by muP 2^-6.0, 2^-6.3 and 2^-6.1: it transfers by muP only,
as theory says. One seed each. `experiments.studies.scaling.transfer` draws it.
"""

from ml_collections import ConfigDict

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import Adder, grid, zip_

HEAD_DIM = 16
BASE_WIDTH = 32
WIDTHS = (32, 64, 128, 256)
RATES = tuple(2.0**-power for power in range(4, 11))


def get_config() -> ConfigDict:
    """Return the config that every point changes."""
    return to_config_dict(
        Config(
            model=ModelConfig(
                num_layers=2,
                d_model=BASE_WIDTH,
                num_heads=BASE_WIDTH // HEAD_DIM,
                max_seq_len=32,
                positions="rotary",
                norm="rmsnorm",
                bias="none",
                tie_embeddings=False,
                layers="unroll",
            ),
            data=DataConfig(seq_len=32, document_mask=False),
            train=TrainConfig(steps=300, global_batch_size=16, eval_batches=16),
            optim=OptimConfig(name="adam", schedule="linear", end_lr_ratio=0.0, warmup=20 / 300, weight_decay=0.0),
            checkpoint=CheckpointConfig(every_steps=300),
            log=LogConfig(tensorboard=False, plot=False),
        )
    )


def sweep(add: Adder) -> None:
    """Add every width at every learning rate, by both parametrizations; those of the base width are the same model."""
    widths = {"model.d_model": WIDTHS, "model.num_heads": tuple(width // HEAD_DIM for width in WIDTHS)}
    bases = {"model.parametrization": ("standard", "mup"), "model.mup.base_d_model": (0, BASE_WIDTH)}
    add(zip_(widths), zip_(bases), grid({"optim.lr": RATES}))
