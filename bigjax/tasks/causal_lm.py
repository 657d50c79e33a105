"""Predicting every next token of texts (decoders, recurrent models)."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, check_vocabulary, shard_of, stored_rows
from bigjax.data.rows.packed import PackedText, Rows
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.text_bytes import bytes_at
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.task import Batch, Task


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Cut texts into rows without gap or overlap."""
    del training
    check_vocabulary(cfg, tokenizer)
    data = cfg.data
    how = (data.seq_len, data.document_mask, data.order == "contiguous")

    def cut(side: SplitSource) -> Rows:
        if side.source.corpus is not None:
            return stored_rows(cfg, side, tokenizer)
        # As in transformers, a text that is continued starts with what the tokenizer puts before it.
        shard = shard_of(side, tokenizer, root, tokenizer.opening)
        count = functools.partial(bytes_at, side, tokenizer, root, shard, tokenizer.opening)
        return PackedText(side.source.spec, shard, *how, count)

    return cut


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return rows of several documents each, with padding at the end and tokens of weight 0 in between.

    As in training, documents are told apart only where `data.document_mask` is set.
    """
    rows, length = cfg.train.global_batch_size, cfg.data.seq_len
    tokens = rng.integers(0, cfg.model.vocab_size, (rows, length + 1), dtype=np.int32)
    starts = (rng.random((rows, length)) < 4 / length) | (np.arange(length) == 0)
    ends = rng.integers(3 * length // 4, length + 1, rows)
    padding = np.arange(length) >= ends[:, None]
    first = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.where(padding, 0, rng.random((rows, length)) < 0.9).astype(np.float32),
    }
    if cfg.data.document_mask:
        batch["segments"] = np.where(padding, 0, np.cumsum(starts, axis=1)).astype(np.int32)
        batch["positions"] = (np.arange(length) - first).astype(np.int32)
    if cfg.data.order == "contiguous":
        batch["continues"] = (rng.random(rows) < 0.9).astype(np.int32)
    return batch


TASK = Task(
    families=("decoder", "rnn"),
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.objectives:causal_lm"),
    carried_loss=lazy.function("bigjax.tasks.objectives:carried_lm"),
    cross_entropy=True,
    continues_text=True,
)
