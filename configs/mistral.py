"""What does it take to train a model of Mistral's shape on these devices, and does the loss behave?

    python -m experiments.train --config=configs/mistral.py:7b --config.data.sources='parquet:corpus/*.parquet' \
        --config.data.tokenizer=hf:PATH/tokenizer.json --workdir=runs/mistral-7b

The shape is that of Mistral 7B v0.1 (Jiang et al. 2023, table 1): 7,241,732,096 parameters, a window of 4,096 tokens on
every layer and rows of 8,192. How it was trained is not published: learning rate, batch and length (1T tokens) here are
those of Llama 7B (Touvron et al. 2023, table 2), the nearest in shape. To start from released weights, use
--config=hf:PATH instead.

As shipped it fits 7b on v5e:4x4, by the analytic model: what is `auto` is chosen for the chips.
"""

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict

ARGUMENTS = ("7b",)
SEQ_LEN = 8192
BATCH_SIZE = 512
TOKENS = 1_000_000_000_000
STEPS = round(TOKENS / (BATCH_SIZE * SEQ_LEN))


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of the one size.

    Raises:
        ConfigError: there is no such size.
    """
    if (arg or "7b") not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=32000,
                num_layers=32,
                d_model=4096,
                num_heads=32,
                num_kv_heads=8,
                d_ff=14336,
                max_seq_len=32768,
                positions="rotary",
                norm="rmsnorm",
                activation="swiglu",
                bias="none",
                tie_embeddings=False,
                sliding_window=4096,
                dtype="bfloat16",
            ),
            data=DataConfig(tokenizer="bpe:32000", seq_len=SEQ_LEN),
            train=TrainConfig(steps=STEPS, global_batch_size=BATCH_SIZE, eval_every_steps=1000),
            optim=OptimConfig(lr=3.0e-4, warmup=2000 / STEPS),
        )
    )
