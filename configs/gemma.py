"""What does it take to train a model of Gemma 2's shape on these devices, and does the loss behave?

    python -m experiments.train --config=configs/gemma.py:2b --config.data.sources='parquet:corpus/*.parquet' \
        --config.data.tokenizer=hf:PATH/tokenizer.json --workdir=runs/gemma-2b

Shapes as released (Gemma Team 2024, table 1): 2b (the default), 9b and 27b with 2,614,341,888, 9,241,705,984 and
27,227,128,320 parameters. A window of 4,096 tokens on every other layer, the first included; norms before and after
each half of a block; queries of 27b divided by the root of d_model / num_heads = 144, not of head_dim. Rows are 8,192
tokens (section 2), and a full run 2T, 8T or 13T of them (section 3.1). The report gives no learning rate and no batch:
those of configs/llama.py:8b stand in, and for 27b half that rate. The released 2b and 9b were distilled from a larger
model, which a run of this config is not. To start from released weights, use --config=hf:PATH instead.

As shipped it fits 2b on v5e:4x4, 9b on v5e:4x8 and 27b on v5e:8x8, by the analytic model: what is `auto` is chosen for
the chips.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict


class Size(NamedTuple):
    """What distinguishes one released model from another."""

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    attn_scale: float | None
    lr: float
    tokens: int


SIZES = {
    "2b": Size(26, 2304, 8, 4, 256, 9216, None, 3.0e-4, 2_000_000_000_000),
    "9b": Size(42, 3584, 16, 8, 256, 14336, None, 3.0e-4, 8_000_000_000_000),
    "27b": Size(46, 4608, 32, 16, 128, 36864, 144**-0.5, 1.5e-4, 13_000_000_000_000),
}
ARGUMENTS = tuple(SIZES)
SEQ_LEN = 8192
BATCH_SIZE = 512


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one size.

    Raises:
        ConfigError: there is no such size.
    """
    arg = arg or "2b"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    size = SIZES[arg]
    steps = round(size.tokens / (BATCH_SIZE * SEQ_LEN))
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=256000,
                num_layers=size.num_layers,
                d_model=size.d_model,
                num_heads=size.num_heads,
                num_kv_heads=size.num_kv_heads,
                head_dim=size.head_dim,
                d_ff=size.d_ff,
                max_seq_len=SEQ_LEN,
                positions="rotary",
                norm="rmsnorm_unit_offset",
                norm_eps=1e-6,
                norm_placement="sandwich",
                activation="geglu",
                bias="none",
                tie_embeddings=True,
                scale_embeddings=True,
                attn_scale=size.attn_scale,
                attn_softcap=50.0,
                final_softcap=30.0,
                layer_windows=(4096, 0),
                dtype="bfloat16",
            ),
            data=DataConfig(tokenizer="bpe:256000", seq_len=SEQ_LEN),
            train=TrainConfig(steps=steps, global_batch_size=BATCH_SIZE, eval_every_steps=1000),
            optim=OptimConfig(lr=size.lr, warmup=2000 / steps),
        )
    )
