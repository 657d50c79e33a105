"""The cache folder: what is slow to make is made once, by one process, and appears whole or not at all.

An entry is a folder named by a hash of all it depends on. It is written under a temporary name and renamed into place.
A lock file lets the other processes of a machine wait for the first; where locks do not reach (some network file
systems) several processes do the same work and the first rename wins, which is slower but as safe.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigjax.data.errors import DataError
from bigjax.paths import is_remote


def cache_folder(cache_dir: str | None) -> Path:
    """Return `cache_dir`, or else `$XDG_CACHE_HOME/bigjax`, or else `~/.cache/bigjax`; make it if missing.

    A user without a home, or with one that cannot be written to, gets one in the folder for temporary files.

    Raises:
      DataError: the folder cannot be made or written to.
    """
    named = cache_dir or (os.environ.get("XDG_CACHE_HOME") and f"{os.environ['XDG_CACHE_HOME']}/bigjax")
    if not named:
        # Neither $HOME nor the system may name a home; and a container's may be `/`, a daemon's not exist.
        with contextlib.suppress(RuntimeError, DataError):
            return _made("~/.cache/bigjax")
    return _made(named or f"{tempfile.gettempdir()}/bigjax-{os.getuid()}")


def _made(name: str) -> Path:
    if is_remote(name):
        raise DataError(f"data.cache_dir={name!r} is no folder on a disk, from which tokens are mapped into memory")
    folder = Path(name).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the cache folder {folder} cannot be made ({error.strerror}): set data.cache_dir") from None
    if not os.access(folder, os.W_OK):
        raise DataError(f"the cache folder {folder} cannot be written to: set data.cache_dir")
    return folder


def content_key(*parts: Any) -> str:
    """Return the sha256 of JSON-able values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def make_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` with `write(temporary folder)`, unless it is there.

    Safe against other processes and against crashes; an exception in `write` leaves nothing behind.

    Raises:
      DataError: it cannot be written, as on a full disk.
    """
    if folder.is_dir():
        return
    try:
        _make_alone(folder, write)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"the cache {folder} cannot be written ({reason}): make room, or set data.cache_dir") from error


def _make_alone(folder: Path, write: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes or its process dies
        if folder.is_dir():
            return
        temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
        temporary.mkdir()
        try:
            write(temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else a process beyond the reach of the lock was first, and ours is a copy
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
