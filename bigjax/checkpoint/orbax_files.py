"""Checkpoints on a disk, written by Orbax."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigjax.checkpoint import digests
from bigjax.config import CheckpointConfig

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp

REMOVING = ".removing"
"""What the name of a step folder ends with while it is deleted."""


class OrbaxFiles:
    """Writes and removes the step folders of one run on a disk. Every process calls `start` alike."""

    def __init__(self, folder: Path, cfg: CheckpointConfig):
        self._folder, self._cfg = folder, cfg
        self._writer: ocp.training.Checkpointer | None = None

    def is_open(self) -> bool:
        """Return whether Orbax holds the folder."""
        return self._writer is not None

    def open(self) -> None:
        """Hand the folder, which is tidy, to Orbax."""
        from orbax.checkpoint import v1 as ocp

        # Typed Any: Orbax's policies do not match the protocols that its own signature names.
        when: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(self._cfg.every_steps)
        # Orbax would remove older checkpoints before the new one has its digests.
        keep: Any = ocp.training.preservation_policies.PreserveAll()
        self._writer = ocp.training.Checkpointer(
            str(self._folder), save_decision_policy=when, preservation_policy=keep, cleanup_tmp_directories=True
        )

    def close(self) -> None:
        """Take the folder back."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def start(self, step: int, state: Any, beside: dict[str, Any]) -> "ocp.AsyncResponse[bool]":
        """Begin to write a pytree; its `result` waits until the folder has its final name, once all have their part."""
        assert self._writer is not None
        response = self._writer.save_checkpointables_async(step, {"state": state}, force=True, custom_metadata=beside)
        if response is None:
            raise RuntimeError(f"Orbax declined to save step {step}")
        return response

    def finish(self, step: int) -> None:
        """Make the step folder complete."""
        digests.write_digests(self._folder, step)

    def remove(self, step: int) -> None:
        """Remove a step folder."""
        # Under another name first: a kill half way through must not leave a checkpoint that looks damaged.
        shutil.rmtree((self._folder / str(step)).rename(self._folder / f"{step}{REMOVING}"))

    def tidy(self) -> None:
        """Finish removals that were cut short."""
        logging.getLogger("absl").addFilter(_not_an_error_of_orbax)
        for path in self._folder.glob(f"*{REMOVING}"):
            shutil.rmtree(path)


def _not_an_error_of_orbax(record: logging.LogRecord) -> bool:
    """Drop what Orbax logs, with a traceback from each of its threads, before it raises the same error."""
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts
