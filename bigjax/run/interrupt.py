"""Turn the first SIGTERM or Ctrl-C into a flag, so that a run stops between two steps with a checkpoint.

The second ends the process at once, whatever it is doing. Python runs its handlers only between two of its own
instructions: a program that compiles, waits for a device or hangs in a collective gets to none. So a thread reads the
numbers of signals from a socket that they are written to as they arrive (`signal.set_wakeup_fd`).
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Mapping
from time import monotonic
from types import FrameType, MappingProxyType

from bigjax.run import processes

EXIT_CODES: Mapping[int, int] = MappingProxyType({signal.SIGTERM: 143, signal.SIGINT: 130})
"""The exit status a shell expects of a process that ends for a signal: 128 plus its number."""

REPEAT_S = 1.0
"""Launchers deliver one Ctrl-C or SIGTERM twice (to the process and to its group): within this time it is one."""


class Interrupt:
    """A context in which the first SIGTERM or SIGINT sets `requested` instead of ending the process.

    A second one, of either kind, ends the process at once with 143 or 130: nothing is saved, and what is half written
    is what a kill would leave. Leaving the context puts the old handlers back. Python lets only the main thread set
    handlers: in another one the context is inert. A loop that stopped for a signal ends its process with `exit_code`.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._undo = contextlib.ExitStack()

    @property
    def requested(self) -> bool:
        """Whether a signal has asked this process to stop."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 0 if there was neither."""
        return 0 if self._signal is None else EXIT_CODES[self._signal]

    def agreed(self, step: int, every_steps: int) -> bool:
        """Return whether a signal has asked any process of the run to stop; every process calls this after each step.

        One process knows it at once; several ask each other after every `every_steps` steps, for it takes time.
        """
        import jax

        polling = jax.process_count() == 1 or step % every_steps == 0
        return polling and processes.agreed(self.requested)

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._watch_arrivals()
            for number in EXIT_CODES:
                old = signal.signal(number, self._handle)
                # None stands for a handler that was not set from Python, which Python cannot put back.
                self._undo.callback(signal.signal, number, signal.SIG_DFL if old is None else old)
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number

    def _watch_arrivals(self) -> None:
        read, write = socket.socketpair()
        write.setblocking(False)
        watcher = threading.Thread(target=_end_at_the_second, args=(read,), name="signals", daemon=True)
        watcher.start()
        old = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        # Last in, first out: once nothing more is written, closing the one end lets the thread reach the end of file.
        self._undo.callback(read.close)
        self._undo.callback(watcher.join)
        self._undo.callback(write.close)
        self._undo.callback(signal.set_wakeup_fd, old)


def _end_at_the_second(arrivals: socket.socket) -> None:
    """Read the numbers of signals as they arrive; end the process at the second that is not the first, repeated."""
    first: float | None = None
    while number := arrivals.recv(1):
        if number[0] not in EXIT_CODES:
            continue
        if first is None:
            first = monotonic()
        elif monotonic() - first >= REPEAT_S:
            os.write(2, b"\nstopped at once by a second signal; the newest complete checkpoint stays\n")
            os._exit(EXIT_CODES[number[0]])
