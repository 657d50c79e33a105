"""Turn SIGTERM and Ctrl-C into a flag, so that a run stops between two steps with a checkpoint."""

import signal
import threading
from collections.abc import Mapping
from time import monotonic
from types import FrameType, MappingProxyType
from typing import Any

EXIT_CODES: Mapping[int, int] = MappingProxyType({signal.SIGTERM: 143, signal.SIGINT: 130})
"""The exit status a shell expects of a process that ends for a signal: 128 plus its number."""

REPEAT_S = 1.0
"""Launchers deliver one Ctrl-C or SIGTERM twice (to the process and to its group): within this time it is one."""


class Interrupt:
    """A context in which the first SIGTERM or SIGINT sets `requested` instead of ending the process.

    A second signal stops waiting: SIGINT raises `KeyboardInterrupt`, SIGTERM `SystemExit(143)`. Leaving the context
    puts the old handlers back. Python delivers signals to the main thread only: in another one the context is inert.
    A loop that stopped for a signal ends its process with `exit_code`.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._time = 0.0
        self._old: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has asked this process to stop."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 0 if there was neither."""
        return 0 if self._signal is None else EXIT_CODES[self._signal]

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            # None stands for a handler that was not set from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._time = number, monotonic()
        elif monotonic() - self._time >= REPEAT_S:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(EXIT_CODES[number])


def agreed(flag: bool) -> bool:
    """Return whether `flag` is set on any process; every process must call this at the same step.

    One process: free. Several: a collective over all devices, which also waits for the steps already dispatched
    (2.4 ms for two processes on one host, more across a network), so call it every few steps, not after each.
    A process that stopped alone would leave the others waiting in their next collective.
    """
    import jax

    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
