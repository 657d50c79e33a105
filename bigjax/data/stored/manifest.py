"""What the shards of a folder hold, written once beside them: sizes, times, digests, the largest id.

`tokens-manifest.npy` is an array with a row for each shard, `ROW`, sorted by name, and then the sha256 of its bytes.
A start compares size and time of each shard with its row and reads nothing else, whatever the size. A shard of another
time is read again: as long as its bytes are the same, it counts as the same. Where the folder cannot be written to, the
manifest lies in the cache. `verify` reads every byte.
"""

import contextlib
import hashlib
import io
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.stored.layouts import index_of, layout_of
from bigjax.data.stored.megatron import Index
from bigjax.data.stored.places import stamp_of, stamps
from bigjax.paths import AnyPath, RemotePath, fetched

NAME = "tokens-manifest.npy"
CHUNK = 2**24
"""Bytes that are read at a time."""

STAMP = ("size", "mtime_ns", "index_size", "index_mtime_ns")
"""Size and time of a shard and of its index, -1 without one, by which a change shows."""

LAYOUT = ("kind", "dtype", "start", "tokens", "documents", "claims")

ROW = np.dtype(
    [
        *((name, "<i8") for name in STAMP),
        ("kind", "S8"),
        ("dtype", "S8"),
        ("start", "<i8"),
        ("tokens", "<i8"),
        ("documents", "<i8"),
        ("claims", "S32"),
        ("max_id", "<i8"),
        ("text_bytes", "<i8"),
        ("sha256", "V32"),
    ]
)
"""A shard: its stamp; its `layouts.Layout`; the largest id, -1 of none; UTF-8 bytes of the text that it is of, 0 where
nobody knows; the sha256 of its bytes and, after them, those of its index. Before it comes its name."""

Progress = Callable[[int], None]
"""Is told of bytes that have been read."""


def read_shard(path: AnyPath, root: Path, told: Progress | None = None) -> np.ndarray:
    """Return the row of a shard, (); reads every byte of it and of its index.

    Raises:
      DataError: it makes no sense, an id is below 0, or it changed meanwhile.
    """
    before = stamp_of(path)
    indexed = before[2] >= 0
    index = Index(fetched([index_of(path)], root)[0]) if indexed else None
    layout = layout_of(path, index)
    digest, largest, smallest = hashlib.sha256(), -1, 0
    dtype, rest, skip = np.dtype(layout.dtype).newbyteorder("<"), b"", layout.start
    with path.open("rb") as file:
        while content := file.read(CHUNK):
            digest.update(content)
            ids = np.frombuffer((rest + content)[skip:], np.uint8)
            whole = len(ids) // dtype.itemsize * dtype.itemsize
            rest, skip = ids[whole:].tobytes(), 0
            if whole:
                found = ids[:whole].view(dtype)
                largest = max(largest, int(found.max()))
                smallest = min(smallest, int(found.min()))
            if told:
                told(len(content))
    if smallest < 0:
        raise DataError(f"{path} has the id {smallest}: ids are 0 or more; it is of another type, or no tokens")
    if index is not None:
        index.check()
        digest.update(index.path.read_bytes())
    if stamp_of(path) != before:
        raise DataError(f"{path} changed while it was read: run again when nothing writes to it")
    return np.array((*before, *layout, largest, 0, digest.digest()), ROW)


def rows_of(folder: AnyPath, names: np.ndarray, root: Path, told: Progress | None = None) -> np.ndarray:
    """Return the rows of shards of one folder, by its manifest as far as that goes; others are read and added to it.

    Args:
      names: (shards,) bytes, sorted. root: cache folder, for a folder that cannot be written to.

    Raises:
      DataError: a shard is not what the manifest says, is gone, or makes no sense; the manifest is damaged.
    """
    place = _place(folder, root)
    known, table = load(place) if place else (names[:0], np.zeros(0, ROW))
    now = stamps(folder, names)
    at = np.minimum(np.searchsorted(known, names), max(len(known) - 1, 0))
    there = known[at] == names if len(known) else np.zeros(len(names), bool)
    rows = np.zeros(len(names), ROW)
    rows[there] = table[at[there]]
    fresh = ~there
    for column, name in enumerate(STAMP):
        other = there & (rows[name] != now[:, column])
        if name.endswith("size") and other.any():
            first = int(np.flatnonzero(other)[0])
            was, size = f"{rows[name][first]:,}", f"{now[first, column]:,}"
            raise _changed(
                folder / names[first].decode(), f"its {name.replace('_', ' ')} was {was} and is {size}", place
            )
        fresh |= other
    if not fresh.any():
        return rows
    for number, row in zip(
        np.flatnonzero(fresh), read_shards([folder / name.decode() for name in names[fresh]], root, told), strict=True
    ):
        if there[number]:
            was, found = (each["sha256"].tobytes().hex()[:12] for each in (rows[number], row))
            if was != found:
                raise _changed(folder / names[number].decode(), f"its sha256 was {was} and is {found}", place)
            row["claims"], row["text_bytes"] = rows[number]["claims"], rows[number]["text_bytes"]
        rows[number] = row
    kept = ~np.isin(known, names)
    _write_somewhere(folder, root, np.concatenate([known[kept], names]), np.concatenate([table[kept], rows]))
    return rows


def _changed(path: AnyPath, what: str, place: AnyPath | None) -> DataError:
    return DataError(
        f"{path} has changed since its manifest was written: {what}; put the file back, or delete {place} to take it "
        "as another corpus"
    )


def _places(folder: AnyPath, root: Path) -> list[AnyPath]:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return [folder / NAME, root / "manifests" / f"{name}.npy"]


def _place(folder: AnyPath, root: Path) -> AnyPath | None:
    return next((place for place in _places(folder, root) if place.is_file()), None)


def _write_somewhere(folder: AnyPath, root: Path, names: np.ndarray, rows: np.ndarray) -> None:
    """Write a manifest where it can be; where it cannot be anywhere, each start reads the shards again."""
    for place in _places(folder, root):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write(place, names, rows)
            return


def read_shards(paths: Sequence[AnyPath], root: Path, told: Progress | None = None) -> Iterable[np.ndarray]:
    """Read shards as `read_shard`, on all cores."""
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1), "shards") as pool:
        return list(pool.map(lambda path: read_shard(path, root, told), paths))


def verify(folder: AnyPath, names: np.ndarray, root: Path, told: Progress | None = None) -> list[str]:
    """Read every byte of shards; return a sentence for each that is not what the manifest says.

    Raises:
      DataError: there is no manifest, or it is damaged.
    """
    place = _place(folder, root)
    if place is None:
        raise DataError(f"{folder} has no {NAME}: the first start of a run on it, or bigjax tokenize, writes one")
    known, table = load(place)
    rows, problems = dict(zip(known.tolist(), table, strict=True)), []
    for name in names.tolist():
        path = folder / name.decode()
        try:
            if name not in rows:
                raise DataError(f"{path} is not in the manifest")
            was, now = (row["sha256"].tobytes().hex()[:12] for row in (rows[name], read_shard(path, root, told)))
            if was != now:
                raise DataError(f"{path} has changed: its sha256 was {was} and is {now}")
        except DataError as error:
            problems.append(str(error))
    return problems


def write(path: AnyPath, names: np.ndarray, rows: np.ndarray) -> None:
    """Write a manifest, whole or not at all.

    Args:
      names: (shards,) bytes. rows: (shards,) of `ROW`.
    """
    order = np.argsort(names, kind="stable")
    table = np.zeros(len(names), [("name", names.dtype), *ROW.descr])
    table["name"] = names[order]
    for column in ROW.names or ():
        table[column] = rows[column][order]
    held = io.BytesIO()
    np.save(held, table, allow_pickle=False)
    content = held.getvalue() + hashlib.sha256(held.getbuffer()).digest()
    if isinstance(path, RemotePath):
        path.write_bytes(content)  # an object appears whole
        return
    # Processes that start at the same time may all write it, each the same.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: AnyPath) -> tuple[np.ndarray, np.ndarray]:
    """Return the names of a manifest, (shards,) bytes, and its rows, (shards,) of `ROW`.

    Raises:
      DataError: it is damaged.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise ValueError("another digest")
        table = np.load(io.BytesIO(content), allow_pickle=False)
        columns = list(ROW.names or ())
        rows = np.zeros(len(table), ROW)
        for column in columns:
            rows[column] = table[column]
        return table["name"].copy(), rows
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise DataError(f"the manifest {path} is damaged ({reason}): delete it, and it is written anew") from None
