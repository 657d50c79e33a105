"""Scoring a split: its rows once, in order, in batches of one size."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bigjax.data.batches.lanes import build_lanes
from bigjax.data.batches.stream import Batch
from bigjax.data.rows.packed import Rows, gather


def names(specs: Sequence[str]) -> list[str]:
    """Return a short name for each source, by which its scores are called: the last part of it that is no pattern.

    Sources that would have the same get numbers: `books`, `books-2`.
    """
    found: list[str] = []
    for spec in specs:
        kind, _, rest = spec.partition(":")
        parts = [part for part in re.split(r"[/:]", rest) if part and not re.search(r"[*?\[]", part)]
        name = re.sub(r"[^\w-]+", "-", parts[-1].partition(".")[0] if parts else kind).strip("-") or kind
        count = sum(other == name or re.fullmatch(rf"{re.escape(name)}-\d+", other) is not None for other in found)
        found.append(f"{name}-{count + 1}" if count else name)
    return found


@dataclass(frozen=True)
class EvalSet:
    """All the rows of some sources in order; the last batch is filled up with rows of weight 0.

    Contiguous ones are read as in training, each row of the batch a stretch of its own, so that a model may carry its
    state through the text, as is the custom for recurrent ones (Zaremba et al. 2014); only the first row of each
    stretch has less to go by than one pass over the whole text would give it.

    Attributes:
      sources: their rows.
      rows: the part of every batch that this process needs.
      global_batch_size: B.
      contiguous: whether row b of a batch continues row b of the one before.
    """

    sources: tuple[Rows, ...]
    rows: slice
    global_batch_size: int
    contiguous: bool = False

    @property
    def num_rows(self) -> int:
        """Number of rows in all the sources."""
        return sum(map(len, self.sources))

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.num_rows // self.global_batch_size)

    def predicts(self, limit: int = 0) -> bool:
        """Whether the first `limit` batches, or all for 0, hold anything to predict; the same for every process."""
        whole = dataclasses.replace(self, rows=slice(0, self.global_batch_size))
        return any(batch.arrays["weights"].any() for batch in whole.batches(limit))

    def batches(self, limit: int = 0) -> Iterator[Batch]:
        """Yield the first `limit` batches, or all for 0.

        Ids count the rows of all the sources.
        """
        counts = [len(source) for source in self.sources]
        lanes = build_lanes(counts, self.global_batch_size)
        first, local = lanes.first, np.arange(self.rows.start, self.rows.stop, dtype=np.int64)
        for step in range(min(limit, len(self)) if limit else len(self)):
            if self.contiguous:
                ids = lanes.bounds[local] + step
                real = ids < lanes.bounds[local + 1]
            else:
                ids = step * self.global_batch_size + local
                real = ids < first[-1]
            source = np.where(real, np.searchsorted(first, ids, side="right") - 1, 0)
            row = np.where(real, ids - first[source], counts[0] + 1)  # past the end: padding
            arrays = gather(self.sources, source, row, ids)
            if self.contiguous:
                arrays["continues"] *= step > 0
            yield Batch(step, np.where(real, ids, -1), arrays)
