"""Parts of many files: those on a disk are read as asked for, those in an object store in blocks that are kept.

Blocks that will be needed are fetched ahead by threads, and the last used are kept, all under a bound.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bigjax.data.errors import DataError
from bigjax.data.stored.megatron import Index
from bigjax.errors import UserError
from bigjax.paths import AnyPath, RemotePath, fetched

OPEN_FILES = 128
"""Files that are kept open."""

FETCHERS = 32
"""Blocks that are fetched at the same time."""

KEPT = 2**28
"""Bytes of blocks that are kept."""

Part = tuple[AnyPath, int, int, int]
"""A file, its size, the byte that a part of it starts at, and the length of that."""


class Reader:
    """Reads parts of files, for several threads.

    Args:
      root: cache folder, for the indices of shards in an object store.
      block: bytes that are fetched from an object store at once. kept: bytes of such blocks that are kept in memory.
    """

    def __init__(self, root: Path, block: int = 2**16, kept: int = KEPT):
        self._root, self._block, self._limit = root, block, max(kept // block, 1)
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._indices: OrderedDict[AnyPath, Index] = OrderedDict()
        self._blocks: OrderedDict[tuple[RemotePath, int], Future[bytes]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def __del__(self) -> None:
        """Close the files that are open."""
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)

    def read(self, path: AnyPath, size: int, start: int, length: int) -> bytes:
        """Return bytes of a file of some size, fewer where it ends before.

        Raises:
          DataError: it cannot be read.
        """
        try:
            if isinstance(path, RemotePath):
                return self._remote(path, size, start, length)
            with self._lock:
                file = self._files.pop(path, None)
                self._files[path] = file = os.open(path, os.O_RDONLY) if file is None else file
                if len(self._files) > OPEN_FILES:
                    os.close(self._files.popitem(last=False)[1])
                return os.pread(file, length, start)
        except UserError:
            raise
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None

    def ahead(self, parts: Iterable[Part]) -> None:
        """Have parts of files in an object store be fetched, as they are about to be read."""
        for path, size, start, length in parts:
            if isinstance(path, RemotePath) and length:
                for number in range(start // self._block, (start + length - 1) // self._block + 1):
                    self._fetch(path, size, number)

    def index(self, path: AnyPath) -> Index:
        """Return the index of a shard."""
        with self._lock:
            index = self._indices.pop(path, None) or Index(fetched([path], self._root)[0])
            self._indices[path] = index
            if len(self._indices) > OPEN_FILES:
                self._indices.popitem(last=False)
            return index

    def _remote(self, path: RemotePath, size: int, start: int, length: int) -> bytes:
        first, last = start // self._block, (start + max(length, 1) - 1) // self._block
        waiting = [self._fetch(path, size, number) for number in range(first, last + 1)]
        content = b"".join(each.result() for each in waiting)
        begin = start - first * self._block
        return content[begin : begin + length]

    def _fetch(self, path: RemotePath, size: int, number: int) -> "Future[bytes]":
        key = (path, number)
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(FETCHERS, "blocks")
            found = self._blocks.pop(key, None)
            if found is None or (found.done() and found.exception() is not None):
                found = self._pool.submit(_block, path, size, number, self._block)
            self._blocks[key] = found
            while len(self._blocks) > self._limit:
                self._blocks.popitem(last=False)
            return found


def _block(path: RemotePath, size: int, number: int, block: int) -> bytes:
    start = number * block
    return path.read_bytes(start, min(start + block, size)) if start < size else b""
