"""When the metrics of a step are read: on accelerators while the next step runs, on CPUs as soon as it has ended."""

from collections.abc import Callable
from typing import Any

from bigjax.run import runtime


class Pending:
    """Hands the metrics of every step to `read`, each once and in order, without keeping the devices waiting.

    Reading waits for the step. Where steps are dispatched ahead, a step is therefore read once the next one is under
    way: the devices never wait for the host. Elsewhere it has ended already (`runtime.dispatches_ahead`).
    """

    def __init__(self, read: Callable[..., None]):
        self._read, self._late = read, runtime.dispatches_ahead()
        self._step: tuple[Any, ...] | None = None

    def dispatched(self, *step: Any) -> None:
        """Take what `read` is to be given of the step that was just dispatched; read the one before."""
        self.flush()
        self._step = step

    def settle(self, *, at_once: bool = False) -> None:
        """Read the last step, too, if it has ended; if not, only where something needs it `at_once`."""
        if at_once or not self._late:
            self.flush()

    def flush(self) -> None:
        """Read the last step unless that is done, which waits for it."""
        step, self._step = self._step, None
        if step is not None:
            self._read(*step)
