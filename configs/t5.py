"""T5 and T5 v1.1 (Raffel et al. 2020) by the published shapes, pre-trained on corrupted spans.

    python -m experiments.train --config=configs/t5.py:tiny
    python -m experiments.train --config=configs/t5.py:v1_1-base --config.data.sources='text:corpus/*.txt' \
        --config.data.tokenizer=hf:PATH

`small`, `base`, `large`, `3b` and `11b` are the paper's (section 3.7): ReLU, logits from the token table scaled by
1 / sqrt(d_model), dropout 0.1. `v1_1-small` to `v1_1-xxl` are those released later: gated GELU (Shazeer 2020), an
output table of its own, no dropout. 128 rows of 512 tokens, 15 % hidden in spans of 3 in the mean, what is written 114
long; 2^19 steps of Adafactor at 0.01, then with the inverse square root after 10,000 steps (section 3.1.2).

Departures: the learning rate rises over its first 10,000 steps, where the paper's is constant; dropout spares the
inside of the MLP; a document is cut into pieces of its own, not joined to the next one. For text-to-text fine-tuning
start from a run with --config.init_from=RUN and set --config.train.objective=seq2seq, the columns data.text_key and
data.target_key, and data.target_len.

`tiny` reads the packaged plays in bytes: a check that the objective learns, not a useful model. After its 1,500
steps of 16 rows, 222 s on two busy CPU cores, held-out loss is 2.364 nats per written token. The share that each token
has of all that is written gives 3.41; a span that ends after a byte with a fixed chance, sentinels in their order, and
bytes by their shares give 2.85 (`test_the_baselines_in_the_docstring_of_the_tiny_t5` counts both).

As shipped it fits base on v5e:1x1, large on v5e:1x1, 3b on v5e:2x2 and 11b on v5e:4x4, by the analytic model: what is
`auto` is chosen for the chips.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from bigjax.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict


class Shape(NamedTuple):
    """A row of a published table."""

    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    head_dim: int


SHAPES = {
    "tiny": Shape(2, 128, 256, 4, 32),
    "small": Shape(6, 512, 2048, 8, 64),
    "base": Shape(12, 768, 3072, 12, 64),
    "large": Shape(24, 1024, 4096, 16, 64),
    "3b": Shape(24, 1024, 16384, 32, 128),
    "11b": Shape(24, 1024, 65536, 128, 128),
    "v1_1-small": Shape(8, 512, 1024, 6, 64),
    "v1_1-base": Shape(12, 768, 2048, 12, 64),
    "v1_1-large": Shape(24, 1024, 2816, 16, 64),
    "v1_1-xl": Shape(24, 2048, 5120, 32, 64),
    "v1_1-xxl": Shape(24, 4096, 10240, 64, 64),
}
ARGUMENTS = tuple(SHAPES)
"""Sizes whose parameters and optimizer state are split over devices rather than copied to each."""

VOCABULARY = 32128
"""32,000 pieces, three special tokens and 100 sentinels, made a multiple of 128."""

STEPS, TINY_STEPS = 2**19, 1500


def model(shape: Shape, *, gated: bool, vocab_size: int = VOCABULARY) -> ModelConfig:
    """Return a T5, or with `gated` a T5 v1.1, of some shape."""
    return ModelConfig(
        family="encdec",
        vocab_size=vocab_size,
        **shape._asdict(),
        positions="relative",
        norm="rmsnorm",
        norm_eps=1e-6,
        activation="geglu" if gated else "relu",
        bias="none",
        tie_embeddings=not gated,
        encdec={"scale_logits": not gated},
        attn_scale=1.0,
        dropout=0.0 if gated else 0.1,
        init="fan_in",
        init_std=1.0,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of a size.

    Raises:
        ConfigError: there is no such size.
    """
    name = arg or "small"
    if name not in SHAPES:
        raise ConfigError(f"configs/t5.py has no {name!r}, only {', '.join(ARGUMENTS)}")
    if name == "tiny":
        return to_config_dict(_tiny())
    return to_config_dict(
        Config(
            model=model(SHAPES[name], gated=name.startswith("v1_1")),
            data=DataConfig(tokenizer="bpe:32000", seq_len=512, target_len=114),
            train=TrainConfig(steps=STEPS, global_batch_size=128, objective="span_corruption", eval_every_steps=1000),
            optim=OptimConfig(
                name="adafactor",
                lr=0.01,
                schedule="inverse_sqrt",
                warmup=10_000 / STEPS,
                weight_decay=0.0,
                grad_clip=None,
            ),
        )
    )


def _tiny() -> Config:
    return Config(
        model=model(SHAPES["tiny"], gated=True, vocab_size=360),
        data=DataConfig(seq_len=64, target_len=16),
        train=TrainConfig(
            steps=TINY_STEPS, global_batch_size=16, objective="span_corruption", eval_every_steps=300, eval_batches=20
        ),
        optim=OptimConfig(lr=2e-3, warmup=100 / TINY_STEPS, weight_decay=0.0),
        checkpoint=CheckpointConfig(every_steps=300),
    )
