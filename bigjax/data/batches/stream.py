"""Training batches: any step's batch by number, the same for every process count, and read ahead in the background."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.data.batches import ramp as batch_ramp
from bigjax.data.batches.lanes import Lanes
from bigjax.data.batches.order import Order
from bigjax.data.batches.ramp import BatchRamp
from bigjax.data.errors import DataError
from bigjax.data.rows.packed import Rows, gather


@dataclass(frozen=True)
class Batch:
    """One process's rows of a global batch.

    Attributes:
      step: its number.
      ids: (rows,) int64, which rows these are; -1 for rows that only fill up a batch.
      arrays: by name, each `(rows, ...)`; see the `Rows` they come from.
    """

    step: int
    ids: np.ndarray
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainStream:
    """The training data of a run: batch n holds the next B rows of the order; step t takes the t-th not left out.

    Where batches grow, batch n holds the next rows by `ramp`; the others are padding, of weight 0 and with the id -1.

    Attributes:
      sources: their rows.
      order: the order of those.
      seed: the seed it was made with.
      rows: the part of every global batch that this process needs.
      global_batch_size: B.
      seq_len: S, how many tokens a row counts as.
      prefetch: number of batches to read ahead.
      left_out: numbers of batches that no step takes, ascending.
      ramp: sizes of batches that grow up to B. microbatches: among which the rows of these are spread.
      held_out: digests of what the run is evaluated on, which must be the same after a resume.
    """

    sources: tuple[Rows, ...]
    order: Order | Lanes
    seed: int
    rows: slice
    global_batch_size: int
    seq_len: int
    prefetch: int
    left_out: tuple[int, ...] = ()
    ramp: BatchRamp | None = None
    microbatches: int = 1
    held_out: tuple[str, ...] = ()

    def leaving_out(self, batches: Iterable[int]) -> "TrainStream":
        """Return the stream without these batches; the steps from there on take later ones."""
        return dataclasses.replace(self, left_out=tuple(sorted(batches)))

    def number(self, step: int) -> int:
        """Return the number of the batch that a step takes."""
        for batch in self.left_out:
            step += batch <= step
        return step

    def size(self, batch: int) -> int:
        """Return the number of rows of a global batch that are not padding."""
        return self.global_batch_size if self.ramp is None else self.ramp.size(batch)

    def rows_before(self, batch: int) -> int:
        """Return the number of rows in all the batches before one."""
        return batch * self.global_batch_size if self.ramp is None else self.ramp.rows_before(batch)

    def rows_taken(self, step: int) -> int:
        """Return the number of rows that the steps before one take."""
        number = self.number(step)
        return self.rows_before(number) - sum(self.size(batch) for batch in self.left_out if batch < number)

    def ids(self, batch: int, rows: Iterable[int]) -> np.ndarray:
        """Return the ids of some rows of a global batch, int64; -1 for those past its end."""
        first, size = self.rows_before(batch), self.size(batch)
        return np.array([self.order.id_at(first + i) if i < size else -1 for i in rows], np.int64)

    def batch(self, step: int) -> Batch:
        """Return this process's rows of the batch of a step."""
        number = self.number(step)
        places = batch_ramp.place(self.size(number), self.global_batch_size, self.microbatches)
        mine = places[self.rows.start : self.rows.stop]
        ids = self.ids(number, mine.tolist())
        source, _, row = self.order.locate(np.maximum(ids, 0))
        row = np.where(ids < 0, len(self.sources[0]), row)
        arrays = gather(self.sources, np.where(ids < 0, 0, source), row, ids)
        if self.ramp is not None:
            arrays["rows"] = mine.astype(np.int32)  # by which dropout is drawn
        if isinstance(self.order, Lanes):
            follows = step > 0 and self.number(step - 1) == number - 1  # not after a batch that was left out
            arrays["continues"] *= follows & ~self.order.opens(ids)
        return Batch(step, ids, arrays)

    @contextmanager
    def batches(self, start_step: int) -> Iterator[Iterator[Batch]]:
        """Open an endless iterator over the batches of `start_step` and later; leaving the context ends its thread.

        What goes wrong while reading ahead is raised where the batch is asked for.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            ready = deque(pool.submit(self.batch, start_step + i) for i in range(self.prefetch))

            def read() -> Iterator[Batch]:
                for step in itertools.count(start_step + self.prefetch):
                    batch = ready.popleft().result()
                    ready.append(pool.submit(self.batch, step))
                    yield batch

            try:
                yield read()
            finally:
                pool.shutdown(cancel_futures=True)

    def state(self, step: int) -> dict[str, Any]:
        """Return where the data stands before `step`, as JSON-able values for a checkpoint.

        `rows` and `tokens` count what the whole run has drawn from each source so far, a row as `seq_len` tokens; what
        was drawn and left out counts.
        """
        counts = self.order.drawn(self.rows_before(self.number(step)))
        sources = [
            {
                "source": source.spec,
                "sha256": source.digest,
                "epoch": count // rows,
                "rows": count,
                "tokens": count * self.seq_len,
            }
            for source, count, rows in zip(self.sources, counts, self.order.rows, strict=True)
        ]
        beside = {"held_out": list(self.held_out), "left_out": list(self.left_out)}
        return {"next_step": step, **self._identity(), "sources": sources, **beside}

    def check(self, state: dict[str, Any]) -> None:
        """Make sure that a saved state belongs to the same data in the same order.

        Raises:
          DataError: it does not; names every field that differs, with both values.
        """
        differences = [
            f"{name} was {state.get(name)!r} and is {value!r}"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]
        saved = state.get("sources", [])
        if len(saved) != len(self.sources):
            differences.append(f"there were {len(saved)} sources and are {len(self.sources)}")
        for source, old in zip(self.sources, saved, strict=False):
            if old["sha256"] != source.digest:
                differences.append(
                    f"the tokens of {source.spec!r} (was {old['source']!r}) have changed: sha256 was "
                    f"{old['sha256'][:12]} and is {source.digest[:12]} (the text, its split or the "
                    "tokenizer is another)"
                )
        if state.get("held_out", list(self.held_out)) != list(self.held_out):
            differences.append("the documents that are held out, or their split or tokenizer, have changed")
        if forgotten := set(state.get("left_out", ())) - set(self.left_out):
            differences.append(f"batches {sorted(forgotten)} were left out and are not")
        if differences:
            raise DataError(
                f"the data is not that of the checkpoint at step {state.get('next_step')}: " + "; ".join(differences)
            )

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            **({} if self.ramp is None else {"ramp": {name: list(values) for name, values in vars(self.ramp).items()}}),
            **self.sources[0].identity,
            **self.order.identity,
        }
