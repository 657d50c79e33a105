"""What does GShard's sparse Transformer need, from 12.5B to 600B parameters?

    python -m experiments.plan --config=configs/gshard.py:600b --topology=v4:8x16x16 --config.mesh.expert=2048

The six sparse models of Lepikhin et al. (2020), table 1, by experts and layers: 12.5b (128 experts, 12 layers; the
default), 37b (128, 36), 50b (512, 12), 150b (512, 36), 200b (2048, 12), 600b (2048, 36). Width 1024, feed-forward and
expert width 8192, 16 heads of 128; every other layer is sparse; top-2 gating by algorithm 1, a capacity of
2 N / (G E). Adafactor with a learning rate of 1 / sqrt(step) after 10,000 steps, batches of 4M tokens.

Not the paper's: its models are encoders and decoders that translate, with the layers shared out over the two; here all
are those of a decoder without cross-attention, which changes 0.15B parameters at most, none of them an expert's.
Vocabulary (64,000), positions (learned), norms before each half, and the weight of the auxiliary loss (1, by its
definition at most 1 / E) are ours.

    name     parameters, here   active for a token
    12.5b              13.15B                 0.47B
    37b                39.33B                 1.28B
    50b                51.81B                 0.47B
    150b              155.30B                 1.28B
    200b              206.44B                 0.48B
    600b              619.18B                 1.31B

All are 3 to 6 % above the table's figures: the experts alone, 2 x 1024 x 8192 weights each, make 618B of the 600B.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig
from bigjax.strict import ConfigError, to_config_dict


class Size(NamedTuple):
    """A row of table 1."""

    num_experts: int
    num_layers: int


SIZES = {
    "12.5b": Size(128, 12),
    "37b": Size(128, 36),
    "50b": Size(512, 12),
    "150b": Size(512, 36),
    "200b": Size(2048, 12),
    "600b": Size(2048, 36),
}
ARGUMENTS = tuple(SIZES)
SEQ_LEN = 1024
BATCH_SIZE = 4096
WARMUP_STEPS = 10_000


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one row of the table.

    Raises:
        ConfigError: there is no such row.
    """
    arg = arg or "12.5b"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    size = SIZES[arg]
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=64000,
                num_layers=size.num_layers,
                d_model=1024,
                num_heads=16,
                head_dim=128,
                d_ff=8192,
                max_seq_len=SEQ_LEN,
                activation="relu",
                bias="none",
                moe=MoeConfig(
                    num_experts=size.num_experts, every=2, router="gshard", capacity_factor=2.0, aux_loss=1.0
                ),
                dtype="bfloat16",
                remat="full",
            ),
            data=DataConfig(tokenizer="bpe:64000", seq_len=SEQ_LEN),
            train=TrainConfig(steps=250_000, global_batch_size=BATCH_SIZE, eval_every_steps=1000),
            optim=OptimConfig(
                name="adafactor",
                lr=WARMUP_STEPS**-0.5,
                schedule="inverse_sqrt",
                warmup_steps=WARMUP_STEPS,
                weight_decay=0.0,
                grad_clip=None,
            ),
            mesh=MeshConfig(data=1, expert=-1),
        )
    )
