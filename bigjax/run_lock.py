"""One trainer at a time in a run folder: who has it, and what becomes of a lock whose owner is gone."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bigjax.errors import UserError
from bigjax.processes import raise_together

LOCK = "trainer.lock"
"""The file in the run folder, `{"host", "pid", "ticks", "since"}`; touched again and again while its owner lives."""

RENEW_S, LEASE_S = 10.0, 120.0
"""How often it is touched, and after how long without that the lock of another machine is stale."""


class InUse(UserError):
    """Another trainer has the run folder."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it is missing and taken away again if nothing is put there.

    Process 0 of the run holds it; every process of the run enters together.

    Raises:
      InUse: another trainer has it; names its host, process and start.
      UserError: nothing can be written there.
    """
    import jax

    owner, problem, done = None, None, threading.Event()
    if jax.process_index() == 0:
        try:
            owner = _take(folder)
        except UserError as error:
            problem = error
    raise_together(problem, UserError("process 0 cannot have the run folder"))
    if owner is not None:
        threading.Thread(target=_renew, args=(folder / LOCK, done), name="lock", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if owner is not None:
            with contextlib.suppress(OSError):
                if _read(folder / LOCK) == owner:
                    (folder / LOCK).unlink()
                folder.rmdir()  # fails if anything is in it


def _take(folder: Path) -> dict[str, Any]:
    pid = os.getpid()
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = {"host": socket.gethostname(), "pid": pid, "ticks": _start_ticks(pid), "since": since}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whoever finds a stale lock reads and replaces it while no one else can.
        with (folder / LOCK).open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            found = _parse(file.read())
            if found and not _is_stale(found, folder / LOCK):
                raise InUse(
                    f"{folder} is in use by another trainer: host {found['host']}, pid {found['pid']}, since "
                    f"{found['since']}; stop that one, or choose another --workdir"
                )
            if found:
                said = f"host {found['host']}, pid {found['pid']}, since {found['since']}"
                print(f"note: the trainer that had {folder} ({said}) is gone", file=sys.stderr, flush=True)
            file.truncate(0)
            file.write(json.dumps(mine))
    except FileExistsError:
        raise UserError(f"{folder} is not a folder: choose another --workdir") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another --workdir") from error
    return mine


def _read(path: Path) -> dict[str, Any] | None:
    return _parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def _parse(text: str) -> dict[str, Any] | None:
    """Return the owner that a lock file names; None for a file that a crash left half written."""
    try:
        owner = json.loads(text)
        return owner if {"host", "pid", "ticks", "since"} <= set(owner) else None
    except (ValueError, TypeError):
        return None


def _is_stale(owner: dict[str, Any], path: Path) -> bool:
    if owner["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime > LEASE_S
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # Another process may have got the same number since, and a zombie is as good as gone.
    return _start_ticks(owner["pid"]) != owner["ticks"]


def _start_ticks(pid: int) -> int | None:
    """Return when a process of this machine was started, in clock ticks; None for a zombie, or if nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _renew(path: Path, done: threading.Event) -> None:
    while not done.wait(RENEW_S):
        with contextlib.suppress(OSError):
            os.utime(path)
