"""What does it take to train a sparse model of Mixtral's shape on these devices?

    python -m experiments.train --config=configs/mixtral.py:8x7b --config.data.sources='parquet:corpus/*.parquet' \
        --config.data.tokenizer=hf:PATH/tokenizer.json --config.mesh.expert=8 --workdir=runs/mixtral

Shapes as released: 8x7b (the default; Jiang et al. 2024, table 1) has 46,702,792,704 parameters, of which a token uses
12,879,925,248; 8x22b has 140,620,634,112 and 39,152,031,744 (its instruction-tuned
variant, with 32,768 pieces, 140,630,071,296 in all). Each token sees 2 of 8 experts, with renormalised weights
and no capacity: nothing is dropped. The weight of the balancing loss, 0.02 for 8x7b and 0.001 for 8x22b, is that of the
released configs. Batch, length and learning rate were not published: they are those of Llama 2's models of nearest
active size (Touvron et al. 2023, table 1), in rows of 8,192 tokens.

With mesh.expert=8 each device keeps one expert of every layer, and tokens travel instead of weights.

As shipped it fits 8x7b on v5e:8x16 and 8x22b on v5p:4x4x4, by the analytic model: what is `auto` is chosen for the
chips.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, MoeConfig, OptimConfig, RopeConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict


class Size(NamedTuple):
    """What distinguishes the two released models."""

    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    max_seq_len: int
    aux_loss: float
    lr: float


SIZES = {
    "8x7b": Size(32, 4096, 32, 14336, 32768, 0.02, 3.0e-4),
    "8x22b": Size(56, 6144, 48, 16384, 65536, 0.001, 1.5e-4),
}
ARGUMENTS = tuple(SIZES)
SEQ_LEN = 8192
BATCH_SIZE = 512
TOKENS = 2_000_000_000_000
"""Llama 2's."""

STEPS = round(TOKENS / (BATCH_SIZE * SEQ_LEN))


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one size.

    Raises:
        ConfigError: there is no such size.
    """
    arg = arg or "8x7b"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    size = SIZES[arg]
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=32000,
                num_layers=size.num_layers,
                d_model=size.d_model,
                num_heads=size.num_heads,
                num_kv_heads=8,
                d_ff=size.d_ff,
                max_seq_len=size.max_seq_len,
                positions="rotary",
                rope=RopeConfig(theta=1_000_000.0),
                norm="rmsnorm",
                norm_eps=1e-5,
                activation="swiglu",
                bias="none",
                tie_embeddings=False,
                moe=MoeConfig(num_experts=8, router="topk", top_k=2, aux_loss=size.aux_loss),
                dtype="bfloat16",
            ),
            data=DataConfig(tokenizer="bpe:32000", seq_len=SEQ_LEN),
            train=TrainConfig(steps=STEPS, global_batch_size=BATCH_SIZE, eval_every_steps=1000),
            optim=OptimConfig(lr=size.lr, warmup=2000 / STEPS, eps=1e-5),
        )
    )
