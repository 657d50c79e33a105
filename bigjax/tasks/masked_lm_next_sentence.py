"""Predicting masked tokens, and whether one text follows another (encoders; Devlin et al. 2019, appendix A.2)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data import cutting
from bigjax.data.cutting import Cut, shard_of
from bigjax.data.rows import example as examples
from bigjax.data.rows.sentence_pairs import SentencePairs
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.masked_lm import ANSWERS, example_masking, predictions
from bigjax.tasks.task import Batch, Task, encoder_problems, pair_problems


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Cut texts into rows of two parts each, which belong together or do not."""
    del training
    masking, starts = cutting.masking(cfg, tokenizer), tokenizer.word_starts
    return lambda side: SentencePairs.build(cfg, side.source.spec, shard_of(side, tokenizer, root), masking, starts)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return masked rows of random documents."""
    shard = examples.shard(cfg, rng, cfg.data.seq_len - 3, max(cfg.train.global_batch_size, 2))
    words = rng.random(cfg.model.vocab_size) < 0.5
    return examples.batch(cfg, SentencePairs.build(cfg, "random", shard, example_masking(cfg), words))


def problems(cfg: Config) -> Iterator[str]:
    """Ask for rows that have room for two parts, and for types that tell them apart."""
    yield from encoder_problems(cfg)
    yield from pair_problems(cfg)


TASK = Task(
    families=("encoder",),
    head="lm_next_sentence",
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.encoders:masked_lm_next_sentence"),
    whole_batch=lazy.function("bigjax.tasks.encoders:scale_pairs"),
    predict=lazy.function("bigjax.tasks.encoders:masked_logits"),
    answers=ANSWERS,
    metrics=("loss", "nll", "accuracy", "next_sentence_nll", "next_sentence_accuracy"),
    head_positions=predictions,
    problems=problems,
)
