"""Rows for reading one text and writing another: two columns of a source, such as a sentence and its translation."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.sources.opening import Document, Source, SplitSource, open_source
from bigjax.data.tokens.shards import Shard

ONE_COLUMN = ("shakespeare", "text")
"""Kinds of sources whose documents have no second column."""


@dataclass(frozen=True)
class ColumnSide:
    """Another column of the documents on one side of a source; which they are, the first column decides."""

    side: SplitSource
    column: Source

    def documents(self) -> Iterator[Document]:
        """Yield the name of each document and what it has in this column, in the order of the source."""
        pairs = zip(self.side.source.read(), self.column.read(), strict=True)
        return (other for document, other in pairs if self.side.keeps(*document))

    def key(self) -> list[str]:
        """What the documents depend on, for a cache."""
        return [*self.side.key(), self.column.digest]


def target_side(cfg: Config, side: SplitSource) -> ColumnSide:
    """Return what is to be written for each document of a side.

    Raises:
      DataError: the source has no column `data.target_key`.
    """
    spec = side.source.spec
    if spec.partition(":")[0] in ONE_COLUMN:
        raise DataError(
            f"{spec!r} has one column, but train.objective={cfg.train.objective!r} needs a text and its target"
        )
    return ColumnSide(side, open_source(spec, cfg.data.target_key))


@dataclass(frozen=True)
class Ends:
    """The ids around what is written: `start`, which it begins after, and `end`, after every row that is read, too."""

    start: int
    end: int
    pad: int


def rows_of(
    read: list[np.ndarray], written: list[np.ndarray], seq_len: int, target_len: int, ends: Ends
) -> dict[str, np.ndarray]:
    """Return the arrays of rows: `tokens` and `segments` `(B, S)`, `inputs`, `targets` and `weights` `(B, T)`.

    What is too long for its end is cut off. `inputs` are `targets` one place later, after `start`. A row in which
    nothing is written has weight 0.
    """
    B = len(read)
    tokens_BS, segments_BS = np.full((B, seq_len), ends.pad, np.int32), np.zeros((B, seq_len), np.int32)
    targets_BT, weights_BT = np.full((B, target_len), ends.pad, np.int32), np.zeros((B, target_len), np.float32)
    for b, (source, target) in enumerate(zip(read, written, strict=True)):
        if not len(target):
            continue
        source, target = source[: seq_len - 1], target[: target_len - 1]
        tokens_BS[b, : len(source) + 1] = [*source.tolist(), ends.end]
        segments_BS[b, : len(source) + 1] = 1
        targets_BT[b, : len(target) + 1] = [*target.tolist(), ends.end]
        weights_BT[b, : len(target) + 1] = 1
    inputs_BT = np.concatenate([np.full((B, 1), ends.start, np.int32), targets_BT[:, :-1]], axis=1)
    return {
        "tokens": tokens_BS,
        "segments": segments_BS,
        "inputs": inputs_BT,
        "targets": targets_BT,
        "weights": weights_BT,
    }


@dataclass(frozen=True, eq=False)
class PairedText:
    """Rows of a text and its target, cut off at S and T tokens and padded.

    Attributes:
      shard: the texts that are read. targets: those that are written, of the same documents.
      eos_id: what the documents of both end with, if anything.
    """

    spec: str
    shard: Shard
    targets: Shard
    seq_len: int
    target_len: int
    ends: Ends
    eos_id: int | None

    @property
    def digest(self) -> str:
        return hashlib.sha256((self.shard.digest + self.targets.digest).encode()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        return {
            name: size + self.targets.sizes[name] * (name != "documents") for name, size in self.shard.sizes.items()
        }

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, "target_len": self.target_len, "special": vars(self.ends)}

    def __len__(self) -> int:
        return self.shard.num_documents

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of `rows_of`."""
        del ids
        read, written = ([self._document(shard, row) for row in rows.tolist()] for shard in (self.shard, self.targets))
        return rows_of(read, written, self.seq_len, self.target_len, self.ends)

    def _document(self, shard: Shard, number: int) -> np.ndarray:
        if number >= len(self):
            return shard.tokens[:0]
        start, stop = shard.offsets[number : number + 2].tolist()
        return without_end(shard.tokens[start:stop], self.eos_id)


def without_end(tokens: np.ndarray, eos_id: int | None) -> np.ndarray:
    """Return tokens without the end of text that a shard puts after every document."""
    return tokens[:-1] if len(tokens) and tokens[-1] == eos_id else tokens
