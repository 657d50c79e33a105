"""Saves that may fail while the training goes on."""

from collections.abc import Callable
from typing import Any

from bigjax.checkpoint.failures import reason_of
from bigjax.checkpoint.saving import Checkpoints


class LenientSaves:
    """The saves of a run that goes on when one fails, as on a full or read-only disk; older checkpoints stay.

    Every failure is one sentence to `tell`. `first` is done before each is complete. Every process of the run calls
    every method, in the same order.
    """

    def __init__(self, checkpoints: Checkpoints, tell: Callable[[str], None], first: Callable[[], None] | None = None):
        self._checkpoints, self._first = checkpoints, first
        self._tell = tell
        self._step = 0
        self.failures = 0
        """How many saves have failed; of an asynchronous one it is known after the next `save` or `wait`."""
        self.last_failed = False
        """Whether the newest save failed, as far as is known."""
        self._told_failures = 0

    def save(
        self, step: int, state: Any, data_state: dict[str, Any], identity: dict[str, Any], *, last: bool = False
    ) -> None:
        """Note how the save before ended, then save as `Checkpoints.save` does; wait for that if it is the `last`."""
        self.wait()
        self._step, self.last_failed = step, False
        self._attempt(lambda: self._checkpoints.save(step, state, data_state, identity, first=self._first))
        if last:
            self.wait()

    def wait(self) -> None:
        """Block until the last save is complete or has failed."""
        self._attempt(self._checkpoints.wait)

    def news(self) -> dict[str, float]:
        """Return the metric `checkpoint/failed_saves` if more saves have failed than at the last call, else nothing."""
        known, self._told_failures = self._told_failures, self.failures
        return {"checkpoint/failed_saves": self.failures} if self.failures > known else {}

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, ValueError, RuntimeError) as error:  # what Orbax and TensorStore make of a full disk
            self.failures, self.last_failed = self.failures + 1, True
            self._tell(f"warning: the checkpoint of step {self._step} could not be saved: {reason_of(error)}")
            self._checkpoints.recover()
