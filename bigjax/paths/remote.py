"""Paths in an object store, with those names of pathlib that bigjax uses; fsspec does the work.

A `RemotePath` is no `os.PathLike`: what only a disk can do with it fails at once instead of making a folder `s3:`.
"""

import errno
import fnmatch
import functools
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias, TypeVar

from bigjax.paths.retries import repeated
from bigjax.paths.stores import file_system

T = TypeVar("T")

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(place: object) -> bool:
    """Return whether `place` is a URL or a `RemotePath`, not a path on a disk; `file://` is one on a disk."""
    return isinstance(place, RemotePath) or (
        isinstance(place, str) and bool(_URL.match(place)) and not place.startswith("file://")
    )


def as_path(place: "str | AnyPath") -> "AnyPath":
    """Return what reads and writes `place`: of a URL such as `s3://BUCKET/NAME` a `RemotePath`, else a `pathlib.Path`.

    Nothing is asked of the store yet: the first call raises UserError where a package for its scheme is missing.
    """
    if isinstance(place, RemotePath):
        return place
    if isinstance(place, str) and is_remote(place):
        return RemotePath(place)
    return Path(place.removeprefix("file://") if isinstance(place, str) else place)


@dataclass(frozen=True)
class Status:
    """What `RemotePath.stat` tells: bytes, and when the object was written, in seconds by the clock of the store."""

    st_size: int
    st_mtime: float

    @property
    def st_mtime_ns(self) -> int:
        return round(self.st_mtime * 1e9)


@functools.total_ordering
class RemotePath:
    """One object of a store, or all whose names begin with its own and a slash. Every call is one answer of the store.

    A call is repeated while the store does not answer (`retries.repeated`); what is missing raises as on a disk.
    There are no folders to make or remove: `mkdir` and `rmdir` do nothing.
    """

    def __init__(self, url: str):
        scheme, _, rest = url.partition("://")
        kept = posixpath.normpath(rest) if rest.strip("/") else ""
        self._url = f"{scheme}://{kept}"
        self._parts = PurePosixPath(kept)

    # ---- Names -----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._url == other._url

    def __lt__(self, other: "RemotePath") -> bool:
        return self._url < other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self._url}/{name}")

    def joinpath(self, *names: str) -> "RemotePath":
        return functools.reduce(RemotePath.__truediv__, names, self)

    @property
    def name(self) -> str:
        return self._parts.name

    @property
    def stem(self) -> str:
        return self._parts.stem

    @property
    def suffix(self) -> str:
        return self._parts.suffix

    @property
    def suffixes(self) -> list[str]:
        return self._parts.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        return self._parts.parts

    @property
    def scheme(self) -> str:
        return self._url.partition("://")[0]

    @property
    def parent(self) -> "RemotePath":
        if len(self._parts.parts) <= 1:
            return self
        return RemotePath(f"{self.scheme}://{self._parts.parent}")

    def with_name(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.scheme}://{self._parts.with_name(name)}")

    def with_suffix(self, suffix: str) -> "RemotePath":
        return RemotePath(f"{self.scheme}://{self._parts.with_suffix(suffix)}")

    def relative_to(self, other: "RemotePath | str") -> PurePosixPath:
        return self._parts.relative_to(RemotePath(str(other))._parts)

    def as_posix(self) -> str:
        return self._url

    def absolute(self) -> "RemotePath":
        return self

    def resolve(self) -> "RemotePath":
        return self

    def expanduser(self) -> "RemotePath":
        return self

    def is_symlink(self) -> bool:
        return False

    # ---- What is there ---------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def stat(self) -> Status:
        """Return size and time of the object; of a folder, size 0."""
        return _status_of(self._ask("read", lambda fs: fs.info(self._url)))

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yield what lies directly in the folder, sorted.

        Raises:
            FileNotFoundError: nothing does.
        """
        found = self._ask("listed", lambda fs: fs.ls(self._url, detail=False))
        yield from sorted({path for path in map(self._beside, found) if path != self})

    def entries(self) -> list[tuple[str, Status]]:
        """Return name, size and time of each object directly in the folder, in one listing."""
        found = self._ask("listed", lambda fs: fs.ls(self._url, detail=True))
        return [(posixpath.basename(info["name"]), _status_of(info)) for info in found]

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yield what is in the folder and matches `pattern`, sorted; nothing where there is no such folder."""
        found = self._ask("listed", lambda fs: fs.glob(f"{_escaped(self._url)}/{pattern}"), missing=[])
        yield from sorted({path for path in map(self._beside, found) if path != self})

    def rglob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yield the objects at any depth whose name matches `pattern`, sorted."""
        yield from (path for path, _ in self.files() if fnmatch.fnmatchcase(path.name, pattern))

    def files(self) -> list[tuple["RemotePath", int]]:
        """Return every object at any depth with its bytes, sorted, in one listing."""
        found = self._ask("listed", lambda fs: fs.find(self._url, detail=True), missing={})
        listed = ((self._beside(name), int(info.get("size") or 0)) for name, info in found.items())
        return sorted((path, size) for path, size in listed if path != self)

    # ---- What it holds ---------------------------------------------------------------------------------------------

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of the object, or those from `start` to before `end`, and no others are fetched."""
        data = self._ask("read", lambda fs: _cat(fs, self._url, start, end))
        return bytes(data)

    def read_text(self, encoding: str | None = None) -> str:
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8").read()

    def write_bytes(self, data: bytes | memoryview) -> int:
        """Make or replace the object, whole."""
        self._ask("written to", lambda fs: fs.pipe_file(self._url, data))
        return len(data)

    def write_text(self, text: str, encoding: str | None = None) -> int:
        self.write_bytes(text.encode(encoding or "utf-8"))
        return len(text)

    def open(self, mode: str = "r", encoding: str | None = None, newline: str | None = None) -> IO[Any]:
        """Return a file to read, of which only the blocks that are asked for are fetched, or one to write.

        What is written appears when the file is closed.

        Raises:
            ValueError: a mode but `r`, `rb`, `w` and `wb`: no object can be appended to.
        """
        if mode not in ("r", "rb", "w", "wb"):
            raise ValueError(f"{self._url} cannot be opened with mode {mode!r}")
        raw: Any = _Reader(self) if mode.startswith("r") else _Writer(self)
        buffered: Any = io.BufferedReader(raw, BLOCK) if mode.startswith("r") else raw
        return buffered if mode.endswith("b") else io.TextIOWrapper(buffered, encoding or "utf-8", newline=newline)

    def create(self, data: bytes) -> bool:
        """Make the object unless it is there; return whether it was this call that made it."""
        try:
            self._ask("written to", lambda fs: fs.pipe_file(self._url, data, mode="create"))
        except FileExistsError:
            # A try whose answer was lost may have made it.
            try:
                return self.read_bytes() == data
            except FileNotFoundError:
                return False
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask("removed", lambda fs: fs.rm_file(self._url))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def copy_to(self, target: "RemotePath") -> None:
        """Copy the object within its store, which moves no byte through this machine."""
        self._ask("copied", lambda fs: fs.cp_file(self._url, str(target)))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if self.is_file():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._url)

    def rmdir(self) -> None:
        return None

    # ---- The store -------------------------------------------------------------------------------------------------

    def _kind(self) -> str | None:
        """Return "file", "directory" or None. fsspec's own `isfile` takes a store that does not answer for None."""
        found = self._ask("read", lambda fs: fs.info(self._url), missing=None)
        return None if found is None else found["type"]

    def _beside(self, name: str) -> "RemotePath":
        """Return the path of what the store lists, which leaves the scheme out."""
        return RemotePath(name if "://" in name else f"{self.scheme}://{name.lstrip('/')}")

    def _ask(self, what: str, call: Callable[[Any], T], **missing: T) -> T:
        fs = file_system(self.scheme)
        try:
            return repeated(self._url, what, lambda: call(fs))
        except FileNotFoundError:
            if "missing" in missing:
                return missing["missing"]
            raise


AnyPath: TypeAlias = Path | RemotePath

BLOCK = 4 * 2**20
"""Bytes that an open file fetches at once."""


class _Reader(io.RawIOBase):
    def __init__(self, path: RemotePath):
        self._path, self._at, self._size = path, 0, path.stat().st_size
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._path.read_bytes(self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Writer(io.BytesIO):
    def __init__(self, path: RemotePath):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            self._path.write_bytes(self.getvalue())
        super().close()

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.close()
        else:
            super().close()  # half a file does not appear


def _cat(fs: Any, url: str, start: int | None, end: int | None) -> bytes:
    data = fs.cat_file(url, start=start, end=end)
    if start is not None and end is not None and len(data) != end - start:
        raise ConnectionError(f"{len(data)} bytes of {end - start} came")
    return data


def _status_of(found: dict[str, Any]) -> Status:
    times = (found.get(key) for key in ("LastModified", "updated", "mtime", "modified", "last_modified", "created"))
    return Status(int(found.get("size") or 0), _seconds(next((time for time in times if time), 0)))


def _seconds(time: Any) -> float:
    if isinstance(time, str):
        time = datetime.fromisoformat(time.replace("Z", "+00:00"))
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return float(time or 0)


def _escaped(url: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", url)
