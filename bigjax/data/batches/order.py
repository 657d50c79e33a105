"""The order of rows: which row of which source is the k-th of a run, as a pure function of (seed, k).

Sources are interleaved in exact proportion and every source is shuffled afresh in each of its epochs, by Grain. Nothing
is stored: any k can be asked for at any time, so resuming, or another number of processes, cannot change the order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.data.batches.mixture import Mixture
from bigjax.data.batches.shares import drawn, mixture_shares
from bigjax.data.errors import DataError


@dataclass(frozen=True)
class Order:
    """The order of a run's rows. Ids name a row and its epoch: `epoch * total rows + first row of its source + row`.

    Attributes:
      rows: number of rows of each source.
      shares: whole numbers in proportion to which sources are drawn from, at first.
      first: (sources + 1,) number of rows of the sources before each.
      shuffles: for each source a `grain.MapDataset` of the row numbers of all its epochs.
      mixture: where the proportions change.
    """

    rows: tuple[int, ...]
    shares: tuple[int, ...]
    first: np.ndarray
    shuffles: tuple[Any, ...]
    mixture: Mixture | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What the order depends on besides the rows, the seed and the batch size."""
        return {"shares": list(self.shares)} | ({"mixture": str(self.mixture)} if self.mixture else {})

    def drawn(self, k: int) -> list[int]:
        """Return how many of the first `k` rows come from each source."""
        return self.mixture.drawn(k) if self.mixture else drawn(k, self.shares)

    def id_at(self, k: int) -> int:
        """Return the id of the k-th row of the run.

        Raises:
          DataError: no source may be read as often.
        """
        if self.mixture and self.mixture.end is not None and k >= self.mixture.end:
            raise DataError(
                f"data.max_epochs ends the data after {self.mixture.end:,} rows: raise it, or take fewer steps"
            )
        if len(self.rows) == 1:
            source, index = 0, k
        else:
            before, after = self.drawn(k), self.drawn(k + 1)
            source = next(i for i in range(len(before)) if before[i] != after[i])
            index = before[source]
        epoch = index // self.rows[source]
        return epoch * int(self.first[-1]) + int(self.first[source]) + self.shuffles[source][index]

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return source index, epoch and row number of ids, each of the same shape, int64."""
        return locate(ids, self.first)


def locate(ids: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return source index, epoch and row number of ids, `first` rows lying before each."""
    epoch, row = np.divmod(ids, first[-1])
    source = np.searchsorted(first, row, side="right") - 1
    return source, epoch, row - first[source]


def build_order(rows: Sequence[int], weights: Sequence[float], seed: int, mixture: Mixture | None = None) -> Order:
    """Order the rows of sources.

    Args:
      rows: number of rows of each source, at least 1.
      weights: proportions of rows drawn from each source. Empty: the sizes, and then every row of every source is drawn
        once before any is drawn again.
      seed: of the run. mixture: how the proportions change, if they do.
    """
    import grain  # takes a second

    shuffles = []
    for source, count in enumerate(rows):
        # Grain shuffles epoch e with seed + e: without the hash, run 1 would start with the second epoch of run 0.
        hashed = int.from_bytes(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:4])
        shuffles.append(grain.MapDataset.range(count).shuffle(seed=hashed).repeat())
    first = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    return Order(tuple(rows), mixture_shares(weights or rows), first, tuple(shuffles), mixture)
