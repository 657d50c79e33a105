"""The bytes of arrays in an object store: written by every process for itself, read block by block.

A process writes those shards of every array that are its own (of equal ones, the first) one after another, as one
stream of bytes in row-major order, cut into objects of `OBJECT_BYTES`. Each `BLOCK_BYTES` of an object have a SHA-256
of their own. A reader fetches the blocks that it needs and no others, and finds damage in them without the rest.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bigjax.checkpoint.digests import BLOCK_BYTES
from bigjax.paths import RemotePath

OBJECT_BYTES = 2 * BLOCK_BYTES
"""8 MiB: larger ones were slower, as Python's event loop copies what a socket has not taken yet, again and again."""

THREADS = 8
"""How many objects are on their way at once."""

BATCH_BYTES = 2**29
"""Arrays are read so many bytes at a time: as much memory is needed beside the arrays themselves."""


class DamagedCheckpoint(Exception):
    """An object is missing, or does not hold what was saved; the message names it."""


@dataclass(frozen=True)
class Chunk:
    """A shard of an array: where it begins in the array, its shape, and where it begins in the stream of a process."""

    array: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    bytes: int


def own_shards(arrays: dict[str, jax.Array]) -> list[tuple[str, tuple[int, ...], np.ndarray]]:
    """Return what this process is to write: name, start and values of every shard, once however often it is there.

    The values are on the host when this returns, and no later step can change them.
    """
    shards = [(name, shard) for name, x in arrays.items() for shard in x.addressable_shards if shard.replica_id == 0]
    for _, shard in shards:
        shard.data.copy_to_host_async()
    found = []
    for name, shard in shards:
        values = np.asarray(shard.data)
        if shard.device.platform == "cpu":  # else it is a copy already, and not the device's own memory
            values = values.copy()
        found.append((name, tuple(part.start or 0 for part in shard.index), np.asarray(values, order="C")))
    return found


def write(folder: RemotePath, shards: Sequence[tuple[str, tuple[int, ...], np.ndarray]]) -> tuple[list[Chunk], Any]:
    """Write the stream of one process to `folder/NUMBER.bin`; return its chunks, and `{name: its digests}` of each.

    Raises:
        OSError: something cannot be written.
    """
    chunks, offset = [], 0
    for name, start, values in shards:
        chunks.append(Chunk(name, start, values.shape, offset, values.nbytes))
        offset += values.nbytes
    views = [values.reshape(-1).view(np.uint8).data for _, _, values in shards]

    def put(number: int, begin: int) -> tuple[str, dict[str, Any]]:
        data = _joined(chunks, views, begin, min(begin + OBJECT_BYTES, offset))
        blocks = [hashlib.sha256(data[at : at + BLOCK_BYTES]).hexdigest() for at in range(0, len(data), BLOCK_BYTES)]
        (folder / object_name(number)).write_bytes(bytes(data))
        return object_name(number), {"bytes": len(data), "blocks": blocks}

    with ThreadPoolExecutor(THREADS, "save") as pool:
        begins = range(0, offset, OBJECT_BYTES)
        return chunks, dict(pool.map(put, range(len(begins)), begins))


def _joined(chunks: Sequence[Chunk], views: Sequence[memoryview], begin: int, end: int) -> memoryview:
    """Return the bytes of a stream from `begin` to before `end`."""
    parts = [
        view[max(begin - chunk.offset, 0) : end - chunk.offset]
        for chunk, view in zip(chunks, views, strict=True)
        if chunk.offset < end and chunk.offset + chunk.bytes > begin
    ]
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def object_name(number: int) -> str:
    return f"{number:06d}.bin"


Wanted = tuple[str, tuple[slice, ...], tuple[int, ...]]
"""An array, the part of it that a device needs, and the shape of that."""


class Reader:
    """Reads parts of arrays from the streams of all processes.

    Args:
        folder: of the step.
        chunks: those of every process, by the name of its folder.
        digests: `{"bytes", "blocks"}` of every object, by its name in `folder`.
    """

    def __init__(self, folder: RemotePath, chunks: dict[str, list[Chunk]], digests: dict[str, Any]):
        self._folder, self._digests = folder, digests
        self._of: dict[str, list[tuple[str, Chunk]]] = {}
        for process, found in chunks.items():
            for chunk in found:
                self._of.setdefault(chunk.array, []).append((process, chunk))
        self._blocks: dict[tuple[str, int], memoryview] = {}

    def read(self, wanted: Sequence[Wanted], dtypes: dict[str, Any]) -> Iterator[tuple[Wanted, np.ndarray]]:
        """Yield every wanted part with its values, a batch of `BATCH_BYTES` at a time.

        Raises:
            DamagedCheckpoint: a block that is needed is missing or not what was saved.
            OSError: the store does not answer.
        """
        with ThreadPoolExecutor(THREADS, "restore") as pool:
            for batch in _batches(wanted, lambda part: math.prod(part[2]) * np.dtype(dtypes[part[0]]).itemsize):
                parts = [(part, list(self._parts(part, np.dtype(dtypes[part[0]])))) for part in batch]
                ranges = ((f"{p}/", begin, end) for _, found in parts for p, _, begin, end in found)
                needed = {block for where, begin, end in ranges for block in _blocks(where, begin, end)}
                self._blocks = {block: data for block, data in self._blocks.items() if block in needed}
                for got in pool.map(self._fetch, _runs(sorted(needed - self._blocks.keys()))):
                    self._blocks |= got
                for part, found in parts:
                    yield part, self._assembled(part, found, np.dtype(dtypes[part[0]]))

    def _parts(self, wanted: Wanted, dtype: np.dtype) -> Iterator[tuple[str, Chunk, int, int]]:
        """Yield the chunks that a part lies in, with the bytes of the stream that hold their rows of it.

        Rows of a chunk are whole: they lie together, and a request for each piece of each row would take longer.
        """
        name, index, _ = wanted
        for process, chunk in self._of.get(name, []):
            low, high = _shared(chunk, index)
            if all(a < b for a, b in zip(low, high, strict=True)):
                row = math.prod(chunk.shape[1:]) * dtype.itemsize
                first, last = (low[0] - chunk.start[0], high[0] - chunk.start[0]) if chunk.shape else (0, 1)
                yield process, chunk, chunk.offset + first * row, chunk.offset + last * row

    def _assembled(self, wanted: Wanted, parts: Sequence[Any], dtype: np.dtype) -> np.ndarray:
        _, index, shape = wanted
        values = np.empty(shape, dtype)
        filled = 0
        for process, chunk, begin, end in parts:
            if self._filled(values, chunk, index, f"{process}/", begin, end):
                filled += (end - begin) // dtype.itemsize
                continue
            rows = np.frombuffer(self._bytes(f"{process}/", begin, end), dtype).reshape(-1, *chunk.shape[1:])
            if not chunk.shape:
                values[...] = rows[0]
                filled += 1
                continue
            low, high = _shared(chunk, index)
            there = tuple(
                slice(a - (low[0] if axis == 0 else s), b - (low[0] if axis == 0 else s))
                for axis, (a, b, s) in enumerate(zip(low, high, chunk.start, strict=True))
            )
            here = tuple(slice(a - i.start, b - i.start) for a, b, i in zip(low, high, index, strict=True))
            values[here] = rows[there]
            filled += values[here].size
        if filled != values.size:
            raise DamagedCheckpoint(f"the shards of {wanted[0]} do not cover it")
        return values

    def _filled(self, values: np.ndarray, chunk: Chunk, index: Any, where: str, begin: int, end: int) -> bool:
        """Copy the rows of a chunk at once, if they lie together in the part, too."""
        low, high = _shared(chunk, index)
        if not chunk.shape or [b - a for a, b in zip(low, high, strict=True)][1:] != list(values.shape[1:]):
            return False
        if list(chunk.shape[1:]) != list(values.shape[1:]):
            return False
        row = values.nbytes // values.shape[0]
        target = values.reshape(-1).view(np.uint8)[(low[0] - index[0].start) * row :]
        for key in _blocks(where, begin, end):
            at = key[1] * BLOCK_BYTES
            block = self._blocks[key][max(begin - at, 0) : end - at]
            offset = max(at - begin, 0)
            target[offset : offset + len(block)] = np.frombuffer(block, np.uint8)
        return True

    def _bytes(self, where: str, begin: int, end: int) -> memoryview:
        found = []
        for key in _blocks(where, begin, end):
            at = key[1] * BLOCK_BYTES
            found.append(self._blocks[key][max(begin - at, 0) : end - at])
        return found[0] if len(found) == 1 else memoryview(b"".join(found))

    def _fetch(self, run: tuple[str, int, int]) -> dict[tuple[str, int], memoryview]:
        """Return the blocks of a run, which lie in one object, after comparing their digests."""
        where, first, last = run
        per_object = OBJECT_BYTES // BLOCK_BYTES
        name = where + object_name(first // per_object)
        entry, skipped = self._digests.get(name), first % per_object
        if entry is None:
            raise DamagedCheckpoint(f"{name} is missing")
        end = min((skipped + last - first) * BLOCK_BYTES, entry["bytes"])
        try:
            data = memoryview(self._folder.joinpath(*name.split("/")).read_bytes(skipped * BLOCK_BYTES, end))
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{name} is missing") from None
        found = {}
        for number in range(first, last):
            block = data[(number - first) * BLOCK_BYTES : (number - first + 1) * BLOCK_BYTES]
            if hashlib.sha256(block).hexdigest() != entry["blocks"][number % per_object]:
                raise DamagedCheckpoint(f"{name} has other bytes than the {entry['bytes']} that were saved")
            found[where, number] = block
        return found


def _shared(chunk: Chunk, index: Sequence[slice]) -> tuple[list[int], list[int]]:
    """Return where the part that a chunk and an index share begins and ends, in the array."""
    axes = list(zip(chunk.start, chunk.shape, index, strict=True))
    return [max(s, i.start) for s, _, i in axes], [min(s + n, i.stop) for s, n, i in axes]


def _blocks(where: str, begin: int, end: int) -> Iterator[tuple[str, int]]:
    yield from ((where, number) for number in range(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES)))


def _runs(blocks: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Return neighbouring blocks of one object together: where, first, and the one after the last."""
    runs: list[tuple[str, int, int]] = []
    for where, number in blocks:
        if runs and runs[-1][0] == where and runs[-1][2] == number and number % (OBJECT_BYTES // BLOCK_BYTES):
            runs[-1] = (where, runs[-1][1], number + 1)
        else:
            runs.append((where, number, number + 1))
    return runs


def _batches(wanted: Sequence[Wanted], size: Callable[[Wanted], int]) -> Iterator[list[Wanted]]:
    batch, total = [], 0
    for part in wanted:
        if batch and total + size(part) > BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(part)
        total += size(part)
    if batch:
        yield batch
