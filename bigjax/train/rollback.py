"""Going back to the newest checkpoint without a batch: the list of such batches, and the run that is continued."""

import functools
import gc
import json
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from bigjax.run.folder import RunFolder
from bigjax.run.json_files import reading, write_json

P = ParamSpec("P")
R = TypeVar("R")


class RolledBack(Exception):
    """A batch was left out: the run is to be continued from its newest checkpoint."""


def repeat_after_rollback(run: Callable[P, R]) -> Callable[P, R]:
    """Let a function that resumes a run be called again whenever it raises `RolledBack`.

    A rollback so takes the way of every resume: there is no second one that could differ.
    """

    @functools.wraps(run)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            try:
                return run(*args, **kwargs)
            except RolledBack:
                pass
            gc.collect()  # frees the device memory of the train state that is given up

    return repeated


def left_out(folder: RunFolder, data_state: dict[str, Any] | None = None) -> list[int]:
    """Return the batches that the run leaves out: those its folder lists and those that a checkpoint knows of."""
    listed = {entry["batch"] for entry in _entries(folder)}
    return sorted(listed | set((data_state or {}).get("left_out", ())))


def note(folder: RunFolder, batches: Iterable[int]) -> None:
    """Add to the list of the run those of its left-out batches that are missing there, since a checkpoint knew of them.

    Every process calls this within `run_lock.held`, which waits for what process 0 has written.
    """
    for batch in sorted(set(batches) - set(left_out(folder))):
        leave_out(folder, batch, None, "known from a checkpoint only")


def leave_out(folder: RunFolder, batch: int, step: int | None, kind: str) -> None:
    """Add the batch that `step` took to the list of the run; every later start honours it."""
    import jax

    if jax.process_index() == 0:
        write_json(folder.left_out, {"batches": [*_entries(folder), {"batch": batch, "step": step, "kind": kind}]})


def _entries(folder: RunFolder) -> list[dict[str, Any]]:
    """Return `{"batch": its number, "step": that took it, "kind": why it is left out}` for each."""
    if not folder.left_out.exists():
        return []
    with reading(folder.left_out):
        entries = json.loads(folder.left_out.read_text())["batches"]
        if not all(isinstance(entry["batch"], int) for entry in entries):
            raise TypeError("a batch that is no number")
        return entries
