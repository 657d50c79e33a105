"""The signs of life of one process of a group: which phase of the run it is in, told to the command that watches it."""

import functools
import itertools
import json
import os
import socket
import threading
from time import monotonic
from typing import Any, Literal

from bigjax.paths import AnyPath

FD = "BIGJAX_HEARTBEAT_FD"
"""The environment variable with the file descriptor to tell it to; unset where nobody watches."""

INTERVAL_S = 0.5
"""Time between two signs of life."""

SHORT_S = 0.05
"""A phase may go untold if the last sign is not even this old: quick steps are not to be slowed down."""

LOST = 6
"""The exit status of a process that ends because another one of its group is gone or stuck."""

Phase = Literal["start", "data", "compile", "restore", "step", "save"]


class Pulse:
    """Tells a phase and a step number to the file descriptor `fd`, again and again, from a thread of its own.

    Each sign is one line of JSON: `{"beat": count, "process", "processes", "host", "pid", "workdir", "phase", "step"}`.
    If nobody reads any more this process ends with status `LOST`: its command was killed.
    """

    def __init__(self, fd: int | None, **identity: Any):
        self._fd, self._identity = fd, identity
        self._now: tuple[Phase, int] = ("start", 0)
        self._told, self._beats = 0.0, itertools.count()
        if fd is not None:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def phase(self, name: Phase, step: int = 0) -> None:
        """Note that this process is in another phase from here on."""
        self._now = (name, step)
        if self._fd is not None and monotonic() - self._told > SHORT_S:
            self._tell()

    def _beat(self) -> None:
        pause = threading.Event()
        while True:
            self._tell()
            pause.wait(INTERVAL_S)

    def _tell(self) -> None:
        fd = self._fd
        assert fd is not None
        phase, step = self._now
        line = {**self._identity, "beat": next(self._beats), "phase": phase, "step": step}
        self._told = monotonic()
        try:
            os.write(fd, f"{json.dumps(line)}\n".encode())  # short enough to be written whole
        except OSError:
            os._exit(LOST)


@functools.cache
def pulse(workdir: AnyPath) -> Pulse:
    """Return the pulse of this process, which trains in `workdir`; the same one if it starts over after a rollback."""
    import jax

    fd = os.environ.get(FD)
    return Pulse(
        None if fd is None else int(fd),
        process=jax.process_index(),
        processes=jax.process_count(),
        host=socket.gethostname(),
        pid=os.getpid(),
        workdir=str(workdir.absolute()),
    )
