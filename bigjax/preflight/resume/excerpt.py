"""The text of a run cut down to a few rows an epoch, so that a few steps see several epochs."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bigjax.data import TextData
from bigjax.data.batches.order import build_order
from bigjax.data.rows.packed import PackedText, Rows
from bigjax.data.tokens.shards import Shard


def excerpt(text: TextData, weights: Sequence[float], rows: int) -> TextData:
    """Return `text` with about `rows` training rows an epoch, and nothing else changed.

    Every source gives its share of the rows, by `weights` (`data.weights`) or, without them, by its size; at least one.
    Packed rows are made from the first documents, each cut so that a row holds parts of two; of others the first are
    taken. The held-out text stays whole.
    """
    train = text.train
    sizes = weights or train.order.rows
    counts = [max(1, round(size / sum(sizes) * rows)) for size in sizes]
    sources = tuple(_first(source, count) for source, count in zip(train.sources, counts, strict=True))
    order = build_order([len(source) for source in sources], weights, train.seed)
    return dataclasses.replace(text, train=dataclasses.replace(train, sources=sources, order=order))


def _first(source: Rows, count: int) -> Rows:
    if isinstance(source, PackedText):
        return dataclasses.replace(source, shard=_first_rows(source.shard, count, source.seq_len))
    return FirstRows(source, min(count, len(source)))


@dataclass(frozen=True, eq=False)
class FirstRows:
    """The first `count` rows of a source."""

    source: Rows
    count: int

    @property
    def spec(self) -> str:
        return self.source.spec

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.source.digest}/{self.count}".encode()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        return self.source.sizes

    @property
    def identity(self) -> dict[str, Any]:
        return self.source.identity

    def __len__(self) -> int:
        return self.count

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return rows as the source does."""
        return self.source.arrays(np.where(rows < self.count, rows, len(self.source)), ids)


def _first_rows(shard: Shard, rows: int, seq_len: int) -> Shard:
    wanted = rows * seq_len + 1
    longest = max(-(-wanted // shard.num_documents), 3 * seq_len // 2)
    pieces, offsets = [], [0]
    for start, stop in pairwise(shard.offsets.tolist()):
        pieces.append(shard.tokens[start : min(stop, start + longest, start + wanted - offsets[-1])])
        offsets.append(offsets[-1] + len(pieces[-1]))
        if offsets[-1] == wanted:
            break
    tokens, ends = np.concatenate(pieces), np.array(offsets, np.int64)
    digest = hashlib.sha256(tokens.tobytes() + ends.tobytes()).hexdigest()
    return dataclasses.replace(shard, tokens=tokens, offsets=ends, digest=digest)
