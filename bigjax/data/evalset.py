"""Scoring a split: its rows once, in order, in batches of one size."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bigjax.data.packing import num_rows
from bigjax.data.shards import Shard
from bigjax.data.stream import Batch, gather


@dataclass(frozen=True)
class EvalSet:
    """All the rows of some shards in order; the last batch is filled up with rows of weight 0.

    Attributes:
      specs: the sources, as configured.
      shards: their tokens.
      rows: the part of every batch that this process needs.
      global_batch_size: B.
      seq_len: S.
      document_mask: as in `pack_rows`.
      token_bytes: (vocab,) int32, UTF-8 bytes of each token.
    """

    specs: tuple[str, ...]
    shards: tuple[Shard, ...]
    rows: slice
    global_batch_size: int
    seq_len: int
    document_mask: bool
    token_bytes: np.ndarray

    @property
    def num_rows(self) -> int:
        """Number of rows in all the shards."""
        return sum(num_rows(len(shard.tokens), self.seq_len) for shard in self.shards)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.num_rows // self.global_batch_size)

    def batches(self, limit: int = 0) -> Iterator[Batch]:
        """Yield the first `limit` batches, or all for 0.

        Besides the arrays of training, `bytes` (rows, S) int32 is how many UTF-8 bytes each target stands for, 0 where
        its weight is 0. Ids count the rows of all the shards.
        """
        counts = [num_rows(len(shard.tokens), self.seq_len) for shard in self.shards]
        first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        for step in range(min(limit, len(self)) if limit else len(self)):
            ids = step * self.global_batch_size + np.arange(self.rows.start, self.rows.stop, dtype=np.int64)
            real = ids < first[-1]
            source = np.where(real, np.searchsorted(first, ids, side="right") - 1, 0)
            row = np.where(real, ids - first[source], counts[0] + 1)  # past the end: padding
            arrays = gather(self.shards, source, row, self.seq_len, self.document_mask)
            arrays["bytes"] = np.where(arrays["weights"] > 0, self.token_bytes[arrays["targets"]], 0)
            yield Batch(step, np.where(real, ids, -1), arrays)
