"""Windows: the documents of a shard, each cut into pieces of at most some length."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bigjax.data.tokens.shards import Shard


@dataclass(frozen=True)
class Windows:
    """Pieces of documents, in order; none holds parts of two documents, and only the last of each is short.

    Attributes:
      shard: the documents. length: tokens of a piece.
    """

    shard: Shard
    length: int

    @cached_property
    def _first(self) -> np.ndarray:
        """(documents + 1,) number of pieces before each document."""
        counts = -(-np.diff(self.shard.offsets) // self.length)
        return np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        """Number of pieces."""
        return int(self._first[-1])

    def document(self, number: int) -> int:
        """Return which document a piece is of."""
        return int(np.searchsorted(self._first, number, side="right")) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the tokens of a piece; none past the end."""
        if number >= len(self):
            return self.shard.tokens[:0]
        document = self.document(number)
        start = int(self.shard.offsets[document]) + (number - int(self._first[document])) * self.length
        return self.shard.tokens[start : min(start + self.length, int(self.shard.offsets[document + 1]))]
