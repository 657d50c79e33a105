"""Global batches that grow while a run is young (Brown et al. 2020, appendix B), as a pure function of the step.

The batch starts with `train.ramp_batch_size` rows and grows by as many at a time, at equal distances in tokens, until
after `train.ramp_tokens` tokens it has `train.global_batch_size`. On the devices a batch always has that last size, so
that one program takes every step: rows beyond the batch have no weight, and microbatches without weight are left out.
"""

import bisect
from dataclasses import dataclass

import numpy as np

from bigjax.config import Config


@dataclass(frozen=True)
class BatchRamp:
    """The sizes of all the batches of a run.

    Attributes:
      sizes: rows of a batch of each stage, growing. steps: the first batch of each stage. rows: those before it.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    rows: tuple[int, ...]

    def size(self, batch: int) -> int:
        """Return the number of rows of a batch."""
        return self.sizes[bisect.bisect_right(self.steps, batch) - 1]

    def rows_before(self, batch: int) -> int:
        """Return the number of rows of all the batches before one."""
        stage = bisect.bisect_right(self.steps, batch) - 1
        return self.rows[stage] + (batch - self.steps[stage]) * self.sizes[stage]

    def steps_for(self, rows: int) -> int:
        """Return how many batches it takes to see as many rows, or a few more."""
        stage = bisect.bisect_right(self.rows, rows) - 1
        return self.steps[stage] + -(-(rows - self.rows[stage]) // self.sizes[stage])

    def full_batches(self, steps: int) -> int:
        """Return how many full batches the first `steps` have rows for, the last batch whole."""
        return self.rows_before(steps - 1) // self.sizes[-1] + 1

    def full_steps(self, steps: int, global_batch_size: int, microbatches: int) -> float:
        """Return how many steps with a full batch are as much work as the first `steps`; see `place`."""
        ends = (*self.steps[1:], steps)
        work = 0.0
        for size, start, end in zip(self.sizes, self.steps, ends, strict=True):
            filled = -(-size * microbatches // global_batch_size)
            work += max(min(end, steps) - start, 0) * filled / microbatches
        return work


def build(cfg: Config) -> BatchRamp:
    """Return the ramp of a run: a single stage where there is none."""
    full, first = cfg.train.global_batch_size, cfg.train.ramp_batch_size or cfg.train.global_batch_size
    increments = max(-(-full // first) - 1, 0)
    length = cfg.train.ramp_tokens // cfg.data.seq_len
    sizes, steps, rows, step, seen = [], [], [], 0, 0
    while True:
        stage = min(seen * increments // length, increments) if increments else 0
        sizes.append(min((stage + 1) * first, full))
        steps.append(step)
        rows.append(seen)
        if stage == increments:
            return BatchRamp(tuple(sizes), tuple(steps), tuple(rows))
        # As far as the first row of the next stage.
        more = -(-(-(-(stage + 1) * length // increments) - seen) // sizes[-1])
        step, seen = step + more, seen + more * sizes[-1]


def place(size: int, global_batch_size: int, microbatches: int) -> np.ndarray:
    """Return which row of a batch of `size` stands in each of the `global_batch_size` places, `size` in empty ones.

    Place r belongs to microbatch r % `microbatches`. As few microbatches as can hold the batch are filled, the rows of
    each spread over all its devices as evenly as goes.
    """
    filled = -(-size * microbatches // global_batch_size)
    row, microbatch = np.divmod(np.arange(global_batch_size), microbatches)
    found = row * filled + microbatch
    return np.where((microbatch < filled) & (found < size), found, size)
