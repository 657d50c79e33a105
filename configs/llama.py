"""What does it take to train a model of Llama 3's shape on these devices, and does the loss behave?

    python -m experiments.train --config=configs/llama.py:8b --config.data.sources='parquet:corpus/*.parquet' \
        --config.data.tokenizer=hf:PATH/tokenizer.json --workdir=runs/llama-8b

Shapes as released: 1b is Llama 3.2 1B (the default), 8b and 70b are Llama 3.1, with 1,235,814,400, 8,030,261,248 and
70,553,706,496 parameters, and rotary positions stretched to 131,072 tokens from 8,192. Rows are 8,192 tokens, as in the
main phase of pre-training; batches of 512 rows are the 4M tokens it starts from. Learning rates of 8b and 70b are from
Llama Team (2024), table 3, and the warmup and the floor of the cosine at 1% are those of its 405B model, section 3.4.1;
clipping, betas, epsilon and weight decay are Llama 2's (Touvron et al. 2023, section 2.2). The released 1B was pruned
and distilled from 8B, so its learning rate here (that of 8b) has no source. A full run is 15T tokens (9T for 1b), about
7e23 FLOPs for 8b: set train.steps to yours.

As shipped it fits 1b on v5e:2x2, 8b on v5e:4x4 and 70b on v5e:16x16, by the analytic model: what is `auto` is chosen
for the chips.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, RopeConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict


class Size(NamedTuple):
    """What distinguishes one released model from another."""

    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    tie_embeddings: bool
    rope_factor: float
    lr: float
    tokens: int


SIZES = {
    "1b": Size(16, 2048, 32, 8192, True, 32.0, 3.0e-4, 9_000_000_000_000),
    "8b": Size(32, 4096, 32, 14336, False, 8.0, 3.0e-4, 15_000_000_000_000),
    "70b": Size(80, 8192, 64, 28672, False, 8.0, 1.5e-4, 15_000_000_000_000),
}
ARGUMENTS = tuple(SIZES)
SEQ_LEN = 8192
BATCH_SIZE = 512


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one size.

    Raises:
        ConfigError: there is no such size.
    """
    arg = arg or "1b"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    size = SIZES[arg]
    steps = round(size.tokens / (BATCH_SIZE * SEQ_LEN))
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=128256,
                num_layers=size.num_layers,
                d_model=size.d_model,
                num_heads=size.num_heads,
                num_kv_heads=8,
                d_ff=size.d_ff,
                max_seq_len=131072,
                positions="rotary",
                rope=RopeConfig(
                    theta=500_000.0,
                    scaling="llama3",
                    factor=size.rope_factor,
                    original_max_seq_len=8192,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                ),
                norm="rmsnorm",
                norm_eps=1e-5,
                activation="swiglu",
                bias="none",
                tie_embeddings=size.tie_embeddings,
                dtype="bfloat16",
            ),
            data=DataConfig(tokenizer="bpe:128256", seq_len=SEQ_LEN),
            train=TrainConfig(steps=steps, global_batch_size=BATCH_SIZE, eval_every_steps=1000),
            optim=OptimConfig(lr=size.lr, warmup=8000 / steps, end_lr_ratio=0.01, eps=1e-5),
        )
    )
