"""Writing the spans that are hidden in a text (encoder-decoders; Raffel et al. 2020, section 3.1.4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, check_vocabulary, ends_of, shard_of
from bigjax.data.rows import example as examples
from bigjax.data.rows.pairs import Ends
from bigjax.data.rows.spans import corrupted
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.special import SENTINELS, sentinel_ids
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.task import Batch, Task


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Cut texts into rows in which spans are hidden afresh in every epoch."""
    del training
    ends, sentinels, eos_id = ends_of(tokenizer), sentinel_ids(tokenizer), tokenizer.eos_id
    check_vocabulary(cfg, tokenizer, sentinels)
    return lambda side: corrupted(cfg, side.source.spec, shard_of(side, tokenizer, root), ends, eos_id, sentinels)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return corrupted rows of one random document each."""
    sentinels = [cfg.model.vocab_size - 1 - number % (cfg.model.vocab_size // 2) for number in range(SENTINELS)]
    shard = examples.shard(cfg, rng, cfg.data.seq_len)
    return examples.batch(cfg, corrupted(cfg, "random", shard, Ends(0, 1, 0), None, sentinels))


TASK = Task(
    families=("encdec",),
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.objectives:seq2seq"),
    cross_entropy=True,
)
