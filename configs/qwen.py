"""What does it take to train a model of Qwen's shape on these devices, and does the loss behave?

    python -m experiments.train --config=configs/qwen.py:qwen3-0.6b --config.data.sources='parquet:corpus/*.parquet' \
        --config.data.tokenizer=hf:PATH/tokenizer.json --workdir=runs/qwen3-0.6b

Shapes as released. Qwen2 (Yang et al. 2024, table 1) has biases on queries, keys and values: qwen2-0.5b and qwen2-7b
with 494,032,768 and 7,615,616,512 parameters. Qwen3 (Yang et al. 2025, table 1) normalises queries and keys instead:
qwen3-0.6b (the default), qwen3-1.7b and qwen3-8b with 596,049,920, 1,720,574,976 and 8,190,735,360. Rows are 4,096
tokens, as in the main phases of both. The reports give neither learning rates nor batches, so those of
configs/llama.py:8b stand in, and runs are 7T tokens (Qwen2, section 3.1), where Qwen3 saw 36T. To start from released
weights, use --config=hf:PATH instead.

As shipped it fits qwen2-0.5b on v5e:1x1, qwen2-7b on v5e:4x4, qwen3-0.6b on v5e:2x2, qwen3-1.7b on v5e:2x2 and qwen3-8b
on v5e:4x4, by the analytic model: what is `auto` is chosen for the chips.
"""

from typing import Literal, NamedTuple

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, RopeConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict


class Size(NamedTuple):
    """What distinguishes one released model from another."""

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    tie_embeddings: bool


SIZES = {
    "qwen2-0.5b": Size(24, 896, 14, 2, 64, 4864, 151936, True),
    "qwen2-7b": Size(28, 3584, 28, 4, 128, 18944, 152064, False),
    "qwen3-0.6b": Size(28, 1024, 16, 8, 128, 3072, 151936, True),
    "qwen3-1.7b": Size(28, 2048, 16, 8, 128, 6144, 151936, True),
    "qwen3-8b": Size(36, 4096, 32, 8, 128, 12288, 151936, False),
}
ARGUMENTS = tuple(SIZES)
SEQ_LEN = 4096
BATCH_SIZE = 1024
TOKENS = 7_000_000_000_000
STEPS = round(TOKENS / (BATCH_SIZE * SEQ_LEN))


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one size.

    Raises:
        ConfigError: there is no such size.
    """
    arg = arg or "qwen3-0.6b"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    size, second = SIZES[arg], arg.startswith("qwen2")
    bias: Literal["qkv", "none"] = "qkv" if second else "none"
    return to_config_dict(
        Config(
            model=ModelConfig(
                **size._asdict(),
                max_seq_len=131072 if second else 32768,
                positions="rotary",
                rope=RopeConfig(theta=1_000_000.0),
                norm="rmsnorm",
                norm_eps=1e-6,
                activation="swiglu",
                bias=bias,
                qk_norm=not second,
                dtype="bfloat16",
            ),
            data=DataConfig(tokenizer=f"bpe:{size.vocab_size}", seq_len=SEQ_LEN),
            train=TrainConfig(steps=STEPS, global_batch_size=BATCH_SIZE, eval_every_steps=1000),
            optim=OptimConfig(lr=3.0e-4, warmup=2000 / STEPS),
        )
    )
