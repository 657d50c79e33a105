"""Averages from sums and counts, and where the numbers of a run go: `metrics.jsonl`, TensorBoard and the console."""

import contextlib
import math
import operator
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import numpy as np

from bigjax.config import LogConfig
from bigjax.errors import UserError
from bigjax.run.console import Progress
from bigjax.run.folder import RunFolder, read_rows
from bigjax.run.json_files import dumps, write_text
from bigjax.tasks.sums import Sums


def add(a: Sums, b: Sums) -> Sums:
    """Return the sums and counts of two batches together."""
    return jax.tree.map(operator.add, a, b)


def means(sums: Sums) -> dict[str, float]:
    """Return name -> sum / count as floats, waiting for the device; NaN where nothing was counted."""
    host = jax.device_get(dict(sums)).items()
    return scalars({name: np.asarray(total, np.float64) / (float(count) or math.nan) for name, (total, count) in host})


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return every number as a float, waiting for the device; element [i, j] of an array `name` as `name/i/j`."""
    found = {}
    for name, value in jax.device_get(dict(values)).items():
        for index, x in np.ndenumerate(value):
            found["/".join([name, *map(str, index)])] = float(x)
    return found


class MetricsWriter:
    """Where the rows of a run go. Only process 0 writes; on the others every method does nothing.

    A row of `metrics.jsonl` is one JSON object: `step`, `time_s` (seconds the run has been training, over all its
    sessions) and the metrics; NaN and infinities are the strings "NaN", "Infinity", "-Infinity", which `float()` reads.
    Rows of one step have no metric in common. A row is on its way to the disk when `write` returns.

    Args:
        run: an open run folder.
        cfg: whether TensorBoard is wanted.
        total_steps: length of the run.
        resumed_at: the step of the checkpoint this session started from: what an earlier session wrote about later
            steps is dropped. None: the session starts from nothing, and every earlier row is dropped.
        progress: whether to show a progress line.
    """

    def __init__(
        self, run: RunFolder, cfg: LogConfig, total_steps: int, resumed_at: int | None = None, *, progress: bool = True
    ):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        kept = -1 if resumed_at is None else resumed_at
        self._run = run
        with _writing(run.metrics):
            self._start = monotonic() - truncate_after(run.metrics, kept)
            self._file = run.metrics.open("a", encoding="utf-8")
        self._tensorboard = _TensorBoard(run.tensorboard, kept + 1) if cfg.tensorboard else None
        self._progress = Progress(total_steps, resumed_at or 0) if progress else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        # The error under way is the one to show.
        with contextlib.suppress(*(() if error[0] is None else (UserError,))):
            self.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` (keys such as `train/loss`) of the state after `step` steps.

        Raises:
            TypeError: a value is not a number that JSON holds; convert arrays with `float` first.
            UserError: the row cannot be written, as on a full disk.
        """
        if not self._active:
            return
        row = {"step": step, "time_s": round(monotonic() - self._start, 3), **metrics}
        line = dumps(row) + "\n"
        with _writing(self._run.metrics):
            self._file.write(line)
            self._file.flush()
        if self._tensorboard:
            with _writing(self._run.tensorboard):
                self._tensorboard.write(step, metrics)
        if self._progress:
            self._progress.update(step, metrics)

    def close(self) -> None:
        """Finish the progress line and wait until everything is written.

        Raises:
            UserError: as `write`.
        """
        if not self._active:
            return
        if self._progress:
            self._progress.close()
        try:
            with _writing(self._run.metrics):
                self._file.close()
        finally:
            if self._tensorboard:
                with _writing(self._run.tensorboard):
                    self._tensorboard.close()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the metrics cannot be written to {path}: {error.strerror}; once they can, the same command continues "
            "from the newest checkpoint"
        ) from error


def truncate_after(path: str | Path, step: int) -> float:
    """Drop the rows of later steps than `step`, atomically, and return the `time_s` of the last row kept, or 0."""
    path = Path(path)
    if not path.is_file():
        return 0.0
    kept = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(dumps(row) + "\n" for row in kept))
    return kept[-1]["time_s"] if kept else 0.0


class _TensorBoard:
    """Event files, written by one background thread: importing tensorboardX takes seconds the first step can use."""

    def __init__(self, folder: Path, purge_step: int):
        self._thread = ThreadPoolExecutor(1, "tensorboard")
        self._writer = self._thread.submit(self._open, folder, purge_step)
        self._last: Future[None] | None = None

    @staticmethod
    def _open(folder: Path, purge_step: int) -> Any:
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._last is not None and self._last.done():
            self._last.result()  # raises what went wrong in the thread
        self._last = self._thread.submit(self._add, step, dict(metrics))

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                continue  # tensorboardX would warn of it, to no use
            self._writer.result().add_scalar(name, value, step)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        if self._last is not None:
            self._last.result()
        self._writer.result().close()
