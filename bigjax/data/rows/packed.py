"""Rows: what a source gives to a batch, by number. Streams and evaluation sets know no more of a source than this."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bigjax.data.rows.packing import num_rows, pack_rows
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.text_bytes import BytesAt


class Rows(Protocol):
    """One side of one source, cut into rows of equal shape.

    Attributes:
      spec: the source, as configured.
      digest: sha256 of its content. sizes: how many documents, tokens and bytes that is.
      identity: what else the rows depend on, JSON-able; the same for all the sources of a run.
    """

    @property
    def spec(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def sizes(self) -> dict[str, int]: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of rows, each `(B, ...)`.

        Args:
          rows: (B,) numbers; one past the end gives a row of padding, whose weight is 0.
          ids: (B,) what randomness may depend on: another number for every row of every epoch.
        """
        ...


@dataclass(frozen=True)
class PackedText:
    """Rows for predicting the next token, cut from a shard without gap or overlap; see `packing.pack_rows`.

    With `contiguous`, rows also have `continues`, int32: 1 if they go on with the text of the row before.

    Attributes:
      count: finds out how many bytes the tokens stand for. bytes_at: what it found; then rows also have `bytes` (B, S)
        int32, the UTF-8 bytes that each target stands for, 0 where its weight is 0.
    """

    spec: str
    shard: Shard
    seq_len: int
    document_mask: bool
    contiguous: bool = False
    count: Callable[[], BytesAt] | None = None
    bytes_at: BytesAt | None = None

    def scored(self) -> "PackedText":
        """Return the same rows with the bytes of their targets."""
        return self if self.count is None else dataclasses.replace(self, bytes_at=self.count())

    @property
    def digest(self) -> str:
        return self.shard.digest

    @property
    def sizes(self) -> dict[str, int]:
        return self.shard.sizes

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, "document_mask": self.document_mask}

    def __len__(self) -> int:
        return num_rows(len(self.shard.tokens), self.seq_len)

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        del ids
        arrays = pack_rows(self.shard.tokens, self.shard.offsets, rows, self.seq_len, self.document_mask)
        if self.contiguous:
            breaks = self.shard.offsets if self.document_mask else np.zeros(1, np.int64)
            arrays["continues"] = (~np.isin(rows * self.seq_len, breaks)).astype(np.int32)
        if self.bytes_at is not None:
            places = rows[:, None] * self.seq_len + 1 + np.arange(self.seq_len)
            found = self.bytes_at(np.minimum(places, len(self.shard.tokens) - 1))
            arrays["bytes"] = np.where(arrays["weights"] > 0, found, 0).astype(np.int32)
        return arrays


def gather(sources: Sequence[Rows], source: np.ndarray, row: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Build rows of several sources.

    Args:
      source: (B,) index of each row's source. row: (B,) its number there. ids: (B,) as in `Rows.arrays`.
    """
    masks = {i: source == i for i in np.unique(source).tolist()}
    parts = {i: sources[i].arrays(row[mask], ids[mask]) for i, mask in masks.items()}
    if len(parts) == 1:
        return parts.popitem()[1]
    arrays = {}
    for name, example in next(iter(parts.values())).items():
        arrays[name] = np.zeros((len(row), *example.shape[1:]), example.dtype)
        for i, mask in masks.items():
            arrays[name][mask] = parts[i][name]
    return arrays
