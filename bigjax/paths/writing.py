"""Files that are whole or not there, files that only one of many processes can make, and folders that go."""

import contextlib
import os
import shutil
from pathlib import Path

from bigjax.paths.remote import AnyPath, RemotePath, as_path


def write_whole(path: str | AnyPath, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all: a reader, or a crash, meets the old file or the new one."""
    path = as_path(path)
    if isinstance(path, RemotePath):
        path.write_bytes(data)  # an object appears whole
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def create(path: str | AnyPath, data: bytes) -> bool:
    """Make `path`, which holds `data` then, and return whether it was this call that made it: of many, one alone does.

    `data` must be of this caller alone: that is how it knows its own file where the answer of a store was lost.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        return path.create(data)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True


def remove_tree(path: str | AnyPath) -> None:
    """Remove a folder and all that is in it; of an object store, every object whose name begins with its own.

    Raises:
        FileNotFoundError: there is no such folder on the disk.
    """
    path = as_path(path)
    if isinstance(path, Path):
        shutil.rmtree(path)
        return
    for found in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found.unlink()
