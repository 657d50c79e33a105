"""A file that one process owns while it lives: taken by one alone, and taken over when its owner is gone.

It holds `{"host", "pid", "ticks", "since"}` and is touched again and again. A process of this machine is gone when the
system knows it no more; one of another machine when it has not touched its file for `LEASE_S`. In an object store it is
a `store_lease`.
"""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bigjax.paths import AnyPath, RemotePath
from bigjax.run import store_lease

Owner = dict[str, Any]

RENEW_S, LEASE_S = 10.0, 120.0
"""How often a file is touched, and after how long without that the one of another machine is stale."""

STORE_RENEW_S = 30.0
"""How often an object is written anew."""


class Taken(Exception):
    """A process that lives has the file."""

    def __init__(self, owner: Owner):
        super().__init__(said(owner))
        self.owner = owner


def said(owner: Owner) -> str:
    """Return who an owner is, in words."""
    return f"host {owner['host']}, pid {owner['pid']}, since {owner['since']}"


def take(path: AnyPath) -> tuple[Owner, Owner | None]:
    """Become the owner of `path`, whose folder exists; return this process and the owner that is gone, if there is one.

    Raises:
      Taken: another process has it, or this one.
      OSError: nothing can be written there.
    """
    pid = os.getpid()
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = {"host": socket.gethostname(), "pid": pid, "ticks": _start_ticks(pid), "since": since}
    if isinstance(path, RemotePath):
        mine, gone, alive = store_lease.take(path, mine, _is_stale)
        if alive:
            raise Taken(alive)
        return mine, gone
    while True:
        # Whoever finds a stale file reads and replaces it while no one else can.
        with path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file):
                continue  # its owner let go between the opening and the lock: another file counts now
            file.seek(0)
            found = _parse(file.read())
            if found and not _is_stale(found, path):
                raise Taken(found)
            file.truncate(0)
            file.write(json.dumps(mine))
            return mine, found


def release(path: AnyPath, owner: Owner) -> None:
    """Remove the file if `owner` still has it."""
    if isinstance(path, RemotePath):
        store_lease.release(path, owner)
        return
    with contextlib.suppress(OSError):
        if _read(path) == owner:
            path.unlink()


def holder(path: AnyPath) -> Owner | None:
    """Return the owner of a file if it lives."""
    if isinstance(path, RemotePath):
        return store_lease.holder(path, _is_stale)
    try:
        owner = _read(path)
        return owner if owner and not _is_stale(owner, path) else None
    except OSError:  # it was let go just now
        return None


@contextlib.contextmanager
def renewed(paths: Sequence[AnyPath]) -> Iterator[None]:
    """Touch files from a thread until the context is left."""
    done = threading.Event()
    threading.Thread(target=_renew, args=(paths, done), name="lease", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _is_at(path: Path, file: Any) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Owner | None:
    return _parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _parse(text: str) -> Owner | None:
    """Return the owner that a file names; None for a file that a crash left half written."""
    try:
        owner = json.loads(text)
        return owner if {"host", "pid", "ticks", "since"} <= set(owner) else None
    except (ValueError, TypeError):
        return None


def _is_stale(owner: Owner, path: AnyPath) -> bool:
    if owner["host"] != socket.gethostname():
        if isinstance(path, RemotePath):
            return store_lease.age(path.parent, path) > LEASE_S
        return _now(path.parent) - path.stat().st_mtime > LEASE_S
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # Another process may have got the same number since, and a zombie is as good as gone.
    return _start_ticks(owner["pid"]) != owner["ticks"]


def _now(folder: Path) -> float:
    """Return the time by the clock that stamps the files there, which is one for all machines: their own may jump."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # it may be read but not written to
        return time.time()


def _start_ticks(pid: int) -> int | None:
    """Return when a process of this machine was started, in clock ticks; None for a zombie, or if nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _renew(paths: Sequence[AnyPath], done: threading.Event) -> None:
    count = 0
    while not done.wait(RENEW_S):
        count += 1
        for path in paths:
            with contextlib.suppress(OSError):
                if not isinstance(path, RemotePath):
                    os.utime(path)
                elif count % round(STORE_RENEW_S / RENEW_S) == 0:
                    store_lease.renew(path)
