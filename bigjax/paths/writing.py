"""Files that are whole or not there, files that only one of many processes can make, and folders that go."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
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


@contextlib.contextmanager
def on_disk(path: str | AnyPath) -> Iterator[Path]:
    """Yield a path on the disk at which to make a file or a folder; for an object store, it is copied there at the end.

    For what only writes to disks. What fails half way leaves nothing in the store.
    """
    path = as_path(path)
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name, path.name)
        yield place
        if place.is_dir():
            Copied(place, path).copy()
        elif place.exists():
            path.write_bytes(place.read_bytes())


class Copied:
    """A folder on the disk, `here`, of which an object store gets what is new."""

    def __init__(self, here: Path, there: RemotePath):
        self.here, self._there = here, there
        self._known: dict[Path, tuple[int, int]] = {}

    def copy(self) -> None:
        """Copy the files that are new or have changed, one request each."""
        for file in sorted(self.here.rglob("*")):
            if file.is_file() and self._known.get(file) != (seen := (file.stat().st_size, file.stat().st_mtime_ns)):
                self._there.joinpath(*file.relative_to(self.here).parts).write_bytes(file.read_bytes())
                self._known[file] = seen

    def largest(self) -> int:
        """Return the bytes of the newest file, by name."""
        return max(((file.name, file.stat().st_size) for file in self.here.iterdir()), default=("", 0))[1]
