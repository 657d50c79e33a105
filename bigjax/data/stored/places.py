"""Where shards lie: listed by a pattern with their sizes and times, on a disk or in an object store."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.stored.layouts import index_of
from bigjax.errors import UserError
from bigjax.paths import AnyPath, RemotePath, as_path, is_remote, matching

Stamp = tuple[int, int, int, int]
"""Size and time, in ns, of a shard and of its index, -1 without one."""


def find_shards(pattern: str) -> list[str]:
    """Return the files that match a glob (`~` and `**` allowed; it may be a URL), sorted.

    Raises:
      DataError: nothing matches, it is a folder, or a file is none of `.bin`.
    """
    expanded = pattern if is_remote(pattern) else os.path.expanduser(pattern)  # noqa: PTH111 - it is no path
    place = as_path(expanded)
    if place.is_dir():
        raise DataError(
            f"tokens:{pattern} is a folder: name the shards in it, as in 'tokens:{pattern.rstrip('/')}/*.bin'"
        )
    found = [expanded] if place.is_file() else _matching(expanded)
    if not found:
        raise DataError(
            f"no file matches {pattern!r}" + ("" if is_remote(pattern) else f" (working folder: {Path.cwd()})")
        )
    if wrong := next((name for name in found if not name.endswith(".bin")), None):
        raise DataError(f"tokens:{pattern} matches {wrong}, which is no .bin: name the shards alone, as in '*.bin'")
    return found


def _matching(pattern: str) -> list[str]:
    import glob

    if is_remote(pattern):
        return [str(path) for path in matching(pattern)]
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - of a hundred thousand, Paths take a second


def stamp_of(path: AnyPath) -> Stamp:
    """Return size and time of a shard and its index now.

    Raises:
      DataError: there is no such file, or it cannot be looked at.
    """
    try:
        found = _size_and_time(path)
    except UserError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    index = (-1, -1)
    with contextlib.suppress(FileNotFoundError):
        index = _size_and_time(index_of(path))
    return found[0], found[1], index[0], index[1]


def _size_and_time(path: AnyPath) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, getattr(status, "st_mtime_ns", round(status.st_mtime * 1e9))


def stamps(folder: AnyPath, names: np.ndarray) -> np.ndarray:
    """Return the stamps of shards in a folder, which is listed once, (shards, 4) int64.

    Args:
      names: (shards,) bytes, sorted.

    Raises:
      DataError: one of them is gone.
    """
    found = np.full((len(names), 4), -1, np.int64)
    columns = {".bin": 0, ".idx": 2}
    places = {name.decode()[:-4]: number for number, name in enumerate(names)}
    for name, size, time in _listed(folder, places, columns):
        column = columns[name[-4:]]
        found[places[name[:-4]], column : column + 2] = size, time
    if len(gone := np.flatnonzero(found[:, 0] < 0)):
        raise DataError(f"{folder}/{names.tolist()[gone[0]].decode()} is gone: put it back")
    return found


def _listed(folder: AnyPath, stems: dict[str, int], suffixes: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of those files of a folder whose stem and suffix are asked for."""
    if isinstance(folder, RemotePath):
        for name, status in folder.entries():
            if name[-4:] in suffixes and name[:-4] in stems:
                yield name, status.st_size, round(status.st_mtime * 1e9)
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[-4:] in suffixes and entry.name[:-4] in stems:
                with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
                    state = entry.stat()
                    yield entry.name, state.st_size, state.st_mtime_ns
