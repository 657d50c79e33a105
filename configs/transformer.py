"""The Transformer (Vaswani et al. 2017) by the shapes of its table 3, for translation.

    python -m experiments.train --config=configs/transformer.py:base --config.data.sources='tsv:de-en/*.tsv' \
        --config.data.text_key=en --config.data.target_key=de

`base` and `big` have 63,045,632 and 214,171,648 parameters with the shared vocabulary of 37,000: the table's 65 and 213
million. Batches of section 5.1 are about 25,000 tokens on either side: 256 rows of up to 100. Adam with b2 = 0.98,
eps = 1e-9, 4,000 steps of warm-up, then the inverse square root (section 5.3), 100,000 and 300,000 steps, label
smoothing 0.1, dropout 0.1 and 0.3. No weight decay and no clipping.

Departures: dropout also falls on the attention's probabilities, as in the authors' code; what writes to the residual
stream starts smaller by sqrt(2 L); the BPE is byte-level. Both columns share it and the tables, also that of logits.
"""

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict

VOCABULARY, LAST_SPECIAL = 37_000, 4
"""The ids after the vocabulary are for padding and the like."""

WARMUP = 4_000
SHAPES = {"base": (512, 2048, 8, 0.1, 100_000), "big": (1024, 4096, 16, 0.3, 300_000)}
"""Width, MLP width, heads, dropout, steps."""

ARGUMENTS = tuple(SHAPES)


def model(d_model: int, d_ff: int, num_heads: int, dropout: float, vocab_size: int, num_layers: int = 6) -> ModelConfig:
    """Return a Transformer as in the paper."""
    return ModelConfig(
        family="encdec",
        vocab_size=vocab_size,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        d_ff=d_ff,
        positions="sinusoidal",
        norm_placement="post",
        activation="relu",
        bias="mlp",
        scale_embeddings=True,
        dropout=dropout,
        init_std=d_model**-0.5,
    )


def noam(d_model: int, warmup: int, steps: int) -> OptimConfig:
    """Return Adam with the schedule of equation 3, whose peak is 1 / sqrt(d_model * warmup), for a run of `steps`.

    A run of another length keeps the peak, and the share of its steps that are warm-up.
    """
    return OptimConfig(
        name="adam",
        lr=(d_model * warmup) ** -0.5,
        schedule="inverse_sqrt",
        warmup=warmup / steps,
        weight_decay=0.0,
        b2=0.98,
        eps=1e-9,
        grad_clip=None,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of a size."""
    name = arg or "base"
    if name not in SHAPES:
        raise ConfigError(f"configs/transformer.py has no {name!r}, only {', '.join(ARGUMENTS)}")
    d_model, d_ff, num_heads, dropout, steps = SHAPES[name]
    return to_config_dict(
        Config(
            model=model(d_model, d_ff, num_heads, dropout, VOCABULARY),
            data=DataConfig(
                sources=("tsv:corpus/*.tsv",), tokenizer=f"bpe:{VOCABULARY - LAST_SPECIAL}", seq_len=100, target_len=100
            ),
            train=TrainConfig(
                steps=steps, global_batch_size=256, objective="seq2seq", label_smoothing=0.1, eval_every_steps=1000
            ),
            optim=noam(d_model, WARMUP, steps),
        )
    )
