"""The cache folder: what is slow to make is made once, by one process, and appears whole or not at all.

An entry is a folder named by a hash of all it depends on. It is written under a temporary name and renamed into place.
A lock file lets the other processes of a machine wait for the first; where locks do not reach (some network file
systems) several processes do the same work and the first rename wins, which is slower but as safe.
"""

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


def cache_folder(cache_dir: str | None) -> Path:
    """Return `cache_dir`, or else `$XDG_CACHE_HOME/bigjax`, or else `~/.cache/bigjax`; make it if missing.

    A user without a home gets one in the folder for temporary files.

    Raises:
      DataError: the folder cannot be made or written to.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = (Path(cache_dir) if cache_dir else Path(user_cache) / "bigjax").expanduser().absolute()
    except RuntimeError:  # neither $HOME nor the system names a home
        folder = Path(tempfile.gettempdir(), f"bigjax-{os.getuid()}")
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
    """
    if folder.is_dir():
        return
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
