"""Predicting masked tokens of texts (encoders; Devlin et al. 2019, section 3.1)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data import cutting
from bigjax.data.cutting import Cut, shard_of
from bigjax.data.rows import example as examples
from bigjax.data.rows.masking import MaskedText, Masking, num_predictions
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.task import Batch, Task, encoder_problems


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Cut texts into rows in which tokens are masked afresh in every epoch."""
    del training
    masking = cutting.masking(cfg, tokenizer)
    return lambda side: MaskedText.build(cfg, side.source.spec, shard_of(side, tokenizer, root), masking)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return masked rows of one random document each."""
    shard = examples.shard(cfg, rng, cfg.data.seq_len - 2)
    return examples.batch(cfg, MaskedText.build(cfg, "random", shard, example_masking(cfg)))


def example_masking(cfg: Config) -> Masking:
    """Return the masking of rows of random content, where no tokenizer says what is a word."""
    ordinary = np.arange(cfg.model.vocab_size, dtype=np.int32)
    return Masking(cfg.data.mask_rate, predictions(cfg), examples.SPECIAL, ordinary, None)


def predictions(cfg: Config) -> int:
    """Return how many tokens of a row are predicted."""
    return num_predictions(cfg.data.seq_len, cfg.data.mask_rate)


TASK = Task(
    families=("encoder",),
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.encoders:masked_lm"),
    metrics=("loss", "nll", "accuracy"),
    cross_entropy=True,
    head_positions=predictions,
    problems=encoder_problems,
)
