"""The contiguous order of rows: every row of the batch, a lane, walks through a stretch of the text of its own.

The stretches divide the rows of all sources, one after the other, evenly; a lane that has come to the end of its own
begins it again, its next epoch. So row b of a batch continues row b of the batch before, except where a stretch, a
source or, where documents are kept apart, a document begins. Like the shuffled order this is arithmetic on the number
of the row: any k can be asked for at any time. The seed plays no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.data.batches.order import locate


@dataclass(frozen=True)
class Lanes:
    """An order of a run's rows. Ids name a row and its epoch, as in `order.Order`.

    Attributes:
      rows: number of rows of each source.
      first: (sources + 1,) number of rows of the sources before each.
      bounds: (lanes + 1,) where the stretch of each lane starts among all rows, and their number.
    """

    rows: tuple[int, ...]
    first: np.ndarray
    bounds: np.ndarray

    @property
    def identity(self) -> dict[str, Any]:
        """What the order depends on besides the rows, the seed and the batch size."""
        return {"order": "contiguous"}

    def id_at(self, k: int) -> int:
        """Return the id of the k-th row of the run: of lane k % lanes."""
        step, lane = divmod(k, len(self.bounds) - 1)
        start, end = self.bounds[lane : lane + 2].tolist()
        epoch, row = divmod(step, end - start)
        return epoch * int(self.first[-1]) + start + row

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return source index, epoch and row number of ids, each of the same shape, int64."""
        return locate(ids, self.first)

    def opens(self, ids: np.ndarray) -> np.ndarray:
        """Return whether each id is the first row of a stretch, same shape."""
        return np.isin(ids % self.first[-1], self.bounds[:-1])

    def drawn(self, k: int) -> list[int]:
        """Return how many of the first `k` rows come from each source."""
        lanes = len(self.bounds) - 1
        counts = np.zeros(len(self.rows), np.int64)
        for lane, (start, end) in enumerate(zip(self.bounds[:-1].tolist(), self.bounds[1:].tolist(), strict=True)):
            epochs, rest = divmod((k + lanes - 1 - lane) // lanes, end - start)
            for times, stop in ((epochs, end), (1, start + rest)):
                counts += times * np.maximum(np.minimum(self.first[1:], stop) - np.maximum(self.first[:-1], start), 0)
        return counts.tolist()


def build_lanes(rows: Sequence[int], lanes: int) -> Lanes:
    """Divide the rows of sources, at least as many as there are lanes, among these."""
    first = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
    return Lanes(tuple(rows), first, np.arange(lanes + 1, dtype=np.int64) * int(first[-1]) // lanes)
