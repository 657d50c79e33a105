"""Reading one text and writing another, such as its translation (encoder-decoders; Sutskever et al. 2014)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, check_vocabulary, ends_of, shard_of, text_tokenizer
from bigjax.data.rows import example as examples
from bigjax.data.rows.packed import Rows
from bigjax.data.rows.pairs import Ends, PairedText, target_side
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.shards import tokenize
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.task import Batch, Task


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Make a row of each pair of texts."""
    del training
    ends = ends_of(tokenizer)
    check_vocabulary(cfg, tokenizer, vars(ends).values())

    def cut(side: SplitSource) -> Rows:
        targets = tokenize(target_side(cfg, side), tokenizer, root)
        lengths = cfg.data.seq_len, cfg.data.target_len
        return PairedText(side.source.spec, shard_of(side, tokenizer, root), targets, *lengths, ends, tokenizer.eos_id)

    return cut


def processor(cfg: Config, sides: Sequence[SplitSource], root: Path) -> Tokenizer:
    """Return the tokenizer, of what is read and of what is written."""
    return text_tokenizer(cfg, [*sides, *(target_side(cfg, side) for side in sides)], root)


def references(cfg: Config, side: SplitSource) -> Iterator[tuple[str, str]]:
    """Yield every text of a side and what is to be written for it."""
    pairs = zip(side.documents(), target_side(cfg, side).documents(), strict=True)
    return ((text, target) for (_, text), (_, target) in pairs)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return pairs of random texts."""
    source, target = (examples.shard(cfg, rng, length - 1) for length in (cfg.data.seq_len, cfg.data.target_len))
    rows = PairedText("random", source, target, cfg.data.seq_len, cfg.data.target_len, Ends(0, 1, 0), None)
    return examples.batch(cfg, rows)


TASK = Task(
    families=("encdec",),
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.objectives:seq2seq"),
    processor=processor,
    cross_entropy=True,
    references=references,
    whole=True,
)
