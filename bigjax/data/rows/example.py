"""What examples of rows are made of: random content, for checks and plans, which read no text."""

from pathlib import Path

import numpy as np

from bigjax.config import Config
from bigjax.data.rows.packed import Rows
from bigjax.data.tokens.shards import Shard

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}


def shard(cfg: Config, rng: np.random.Generator, full: int, documents: int = 0) -> Shard:
    """Return random documents, one a row or as many as given, of half to all of the length `full`."""
    lengths = rng.integers(max(full // 2, 1), full + 1, documents or cfg.train.global_batch_size)
    tokens = rng.integers(0, cfg.model.vocab_size, int(lengths.sum()), dtype=np.uint32)
    return Shard(Path(), tokens, np.concatenate([[0], np.cumsum(lengths)]), tokens.size, "random")


def batch(cfg: Config, rows: Rows) -> dict[str, np.ndarray]:
    """Return the first `train.global_batch_size` of some rows, which are padding if there are not as many."""
    numbers = np.arange(cfg.train.global_batch_size)
    return rows.arrays(numbers, numbers)
