"""Writing how a text goes on after a prefix that is read (encoder-decoders; Raffel et al. 2020, section 3.2.3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, check_vocabulary, ends_of, shard_of
from bigjax.data.rows import example as examples
from bigjax.data.rows.pairs import Ends
from bigjax.data.rows.spans import prefixed
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.task import Batch, Task


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Cut texts into rows, each of which is cut in two anywhere, afresh in every epoch."""
    del training
    ends, eos_id = ends_of(tokenizer), tokenizer.eos_id
    check_vocabulary(cfg, tokenizer, vars(ends).values())
    return lambda side: prefixed(cfg, side.source.spec, shard_of(side, tokenizer, root), ends, eos_id)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return rows of one random document each, cut in two."""
    shard = examples.shard(cfg, rng, min(cfg.data.seq_len, cfg.data.target_len))
    return examples.batch(cfg, prefixed(cfg, "random", shard, Ends(0, 1, 0), None))


TASK = Task(
    families=("encdec",),
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.objectives:seq2seq"),
    cross_entropy=True,
)
