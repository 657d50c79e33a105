"""Averages from sums and counts, and where the numbers of a run go: `metrics.jsonl`, TensorBoard and the console."""

import contextlib
import math
import operator
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import numpy as np

from bigjax.config import LogConfig
from bigjax.errors import UserError
from bigjax.paths import AnyPath, Copied, RemotePath, StoreError
from bigjax.run.console import Progress
from bigjax.run.folder import RunFolder
from bigjax.run.json_files import dumps
from bigjax.run.rows import open_rows, truncate_after
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


EVENTS_S, EVENTS_BYTES = 60.0, 4 * 2**20
"""Seconds between two copies of the event files to an object store, and from how many bytes on another one begins."""


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
            self._rows = open_rows(run.metrics)
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
            self._rows.write(line)
        if self._tensorboard:
            with _writing(self._run.tensorboard):
                self._tensorboard.write(step, metrics)
        if self._progress:
            self._progress.update(step, metrics)

    def stored(self) -> None:
        """Return once a kill cannot lose a row any more; on a disk, at once.

        Raises:
            StoreError: an object store refuses the rows, or has not answered for long.
        """
        if self._active:
            self._rows.stored()
            if self._tensorboard:
                self._tensorboard.stored()

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
                self._rows.close()
        finally:
            if self._tensorboard:
                with _writing(self._run.tensorboard):
                    self._tensorboard.close()


@contextlib.contextmanager
def _writing(path: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the metrics cannot be written to {path}: {error.strerror}; once they can, the same command continues "
            "from the newest checkpoint"
        ) from error


class _TensorBoard:
    """Event files, written by one background thread: importing tensorboardX takes seconds the first step can use.

    Those of an object store are written to the disk and copied every `EVENTS_S`, whole: once a file has `EVENTS_BYTES`
    the next one begins.
    """

    def __init__(self, folder: AnyPath, purge_step: int):
        self._thread = ThreadPoolExecutor(1, "tensorboard")
        self._files = contextlib.ExitStack()
        self._copied: Copied | None = None
        if isinstance(folder, RemotePath):
            self._copied = Copied(Path(self._files.enter_context(tempfile.TemporaryDirectory())), folder)
        place = self._copied.here if self._copied else folder
        self._writer = self._thread.submit(self._open, place, purge_step)
        self._last: Future[None] | None = None
        self._number, self._copied_at = 0, monotonic()

    def _open(self, folder: AnyPath, purge_step: int | None = None, suffix: str = "") -> Any:
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._last is not None and self._last.done():
            self._last.result()  # raises what went wrong in the thread
        self._last = self._thread.submit(self._add, step, dict(metrics))

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                continue  # tensorboardX would warn of it, to no use
            self._writer.result().add_scalar(name, value, step)
        if self._copied and monotonic() - self._copied_at >= EVENTS_S:
            with contextlib.suppress(StoreError):  # the next copy has it all
                self._copy()

    def _copy(self) -> None:
        assert self._copied is not None
        self._copied_at = monotonic()
        self._writer.result().flush()
        self._copied.copy()
        if self._copied.largest() >= EVENTS_BYTES:
            self._writer.result().close()
            self._number += 1
            self._writer = Future()
            self._writer.set_result(self._open(self._copied.here, suffix=f".{self._number}"))

    def stored(self) -> None:
        if self._copied:
            self._thread.submit(self._copy).result()

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        if self._last is not None:
            self._last.result()
        self._writer.result().close()
        if self._copied:
            self._copied.copy()
        self._files.close()
