"""What the shards of a folder hold, written once beside them: sizes, times, digests, the largest id.

`tokens-manifest.jsonl` has a line for each shard and a last one with the sha256 of those before. A start compares size
and time of each shard with its line and reads nothing else, whatever the size. A shard of another time is read again: as
long as its bytes are the same, it counts as the same. Where the folder cannot be written to, the manifest lies in the
cache. `verify` reads every byte.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.stored.layouts import Layout, index_of, layout_of
from bigjax.data.stored.megatron import Index

NAME = "tokens-manifest.jsonl"
FORMAT = 1
CHUNK = 2**24
"""Bytes that are read at a time."""


class Stamp(NamedTuple):
    """Size and time of a shard and of its index, -1 without one, by which a change shows."""

    size: int
    mtime_ns: int
    index_size: int
    index_mtime_ns: int


class Entry(NamedTuple):
    """What a shard holds.

    Attributes:
      stamp: as it was when it was read. layout: what its bytes mean.
      max_id: the largest id, -1 of none. sha256: of its bytes and, after them, those of its index.
      text_bytes: UTF-8 bytes of the text that the tokens are of, 0 where nobody knows.
    """

    stamp: Stamp
    layout: Layout
    max_id: int
    sha256: str
    text_bytes: int = 0


Entries = dict[str, Entry]
"""By name in the folder."""

Progress = Callable[[int], None]
"""Is told of bytes that have been read."""


def read_shard(path: Path, told: Progress | None = None) -> Entry:
    """Return what a shard holds; reads every byte of it and of its index.

    Raises:
      DataError: it makes no sense, an id is below 0, or it changed meanwhile.
    """
    before = stamp_of(path)
    layout = layout_of(path, indexed=before.index_size >= 0)
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
    if before.index_size >= 0:
        Index(index_of(path)).check()
        digest.update(index_of(path).read_bytes())
    if stamp_of(path) != before:
        raise DataError(f"{path} changed while it was read: run again when nothing writes to it")
    return Entry(before, layout, largest, digest.hexdigest())


def stamp_of(path: Path) -> Stamp:
    """Return size and time of a shard and its index now.

    Raises:
      DataError: there is no such file, or it cannot be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    index = (-1, -1)
    with contextlib.suppress(FileNotFoundError):
        beside = index_of(path).stat()
        index = (beside.st_size, beside.st_mtime_ns)
    return Stamp(found.st_size, found.st_mtime_ns, *index)


def stamps(folder: Path, names: Sequence[str]) -> list[Stamp]:
    """Return the stamps of shards in a folder, which is listed once.

    Raises:
      DataError: one of them is gone.
    """
    found: dict[str, tuple[int, int]] = {}
    suffixes = (".bin", ".idx")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffixes):
                with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
                    state = entry.stat()
                    found[entry.name] = (state.st_size, state.st_mtime_ns)
    try:
        return [Stamp(*found[name], *found.get(f"{name[:-4]}.idx", (-1, -1))) for name in names]
    except KeyError as error:
        raise DataError(f"{folder}/{error.args[0]} is gone: put it back") from None


def entries_of(folder: Path, names: Sequence[str], root: Path | None, told: Progress | None = None) -> list[Entry]:
    """Return what shards of one folder hold, by its manifest as far as that goes; what is missing there is read and added.

    Args:
      root: cache folder, for a folder that cannot be written to.

    Raises:
      DataError: a shard is not what the manifest says, is gone, or makes no sense; the manifest is damaged.
    """
    places = [folder / NAME, *([_elsewhere(folder, root)] if root else [])]
    place = next((place for place in places if place.is_file()), None)
    known = load(place) if place else {}
    now = stamps(folder, names)
    stale = [
        (name, stamp) for name, stamp in zip(names, now, strict=True) if name not in known or known[name].stamp != stamp
    ]
    for name, stamp in stale:
        if name in known and known[name].stamp[::2] != stamp[::2]:
            raise _changed(folder / name, f"its size was {known[name].stamp.size:,} and is {stamp.size:,}", place)
    if not stale:
        return [known[name] for name in names]
    fresh = read_shards([folder / name for name, _ in stale], told)
    for (name, _), entry in zip(stale, fresh, strict=True):
        before = known.get(name)
        if before and before.sha256 != entry.sha256:
            raise _changed(folder / name, f"its sha256 was {before.sha256[:12]} and is {entry.sha256[:12]}", place)
        known[name] = before._replace(stamp=entry.stamp) if before else entry
    _write_somewhere(places, known)
    return [known[name] for name in names]


def _changed(path: Path, what: str, place: Path | None) -> DataError:
    return DataError(
        f"{path} has changed since its manifest was written: {what}; put the file back, or delete {place} to take it "
        "as another corpus"
    )


def _elsewhere(folder: Path, root: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return root / "manifests" / f"{name}.jsonl"


def _write_somewhere(places: Iterable[Path], entries: Mapping[str, Entry]) -> None:
    """Write a manifest where it can be; where it cannot be anywhere, each start reads the shards again."""
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write(place, entries)
            return


def read_shards(paths: Sequence[Path], told: Progress | None = None) -> list[Entry]:
    """Read shards as `read_shard`, on all cores."""
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1), "shards") as pool:
        return list(pool.map(lambda path: read_shard(path, told), paths))


def verify(folder: Path, names: Sequence[str], root: Path | None, told: Progress | None = None) -> list[str]:
    """Read every byte of shards; return a sentence for each that is not what the manifest says.

    Raises:
      DataError: there is no manifest, or it is damaged.
    """
    places = [folder / NAME, *([_elsewhere(folder, root)] if root else [])]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise DataError(f"{folder} has no {NAME}: a start of a run, or bigjax tokenize, writes it")
    known, problems = load(place), []
    for name in names:
        if name not in known:
            problems.append(f"{folder / name}: not in the manifest")
            continue
        try:
            found = read_shard(folder / name, told)
        except DataError as error:
            problems.append(str(error))
            continue
        if found.sha256 != known[name].sha256:
            problems.append(f"{folder / name}: sha256 was {known[name].sha256[:12]} and is {found.sha256[:12]}")
    return problems


def write(path: Path, entries: Mapping[str, Entry]) -> None:
    """Write a manifest, whole or not at all."""
    digest, temporary = hashlib.sha256(), path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for name in sorted(entries):
                entry = entries[name]
                line = {"name": name, **entry.stamp._asdict(), **entry.layout._asdict(), "max_id": entry.max_id}
                said = json.dumps(line | {"text_bytes": entry.text_bytes, "sha256": entry.sha256}) + "\n"
                digest.update(said.encode())
                file.write(said)
            file.write(json.dumps({"format": FORMAT, "shards": len(entries), "manifest": digest.hexdigest()}) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Entries:
    """Return the entries of a manifest.

    Raises:
      DataError: it is damaged.
    """
    try:
        content = path.read_bytes()
        end = content.rstrip(b"\n").rfind(b"\n") + 1
        last = json.loads(content[end:])
        if last["format"] != FORMAT or last["manifest"] != hashlib.sha256(content[:end]).hexdigest():
            raise ValueError("its digest is another")
        return {line["name"]: _entry(line) for line in map(json.loads, content[:end].splitlines())}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}"
        raise DataError(f"the manifest {path} is damaged ({reason}): delete it, and it is written anew") from None


def _entry(line: dict[str, Any]) -> Entry:
    stamp = Stamp(*(int(line[name]) for name in Stamp._fields))
    layout = Layout(*(kind(line[name]) for name, kind in zip(Layout._fields, _KINDS, strict=True)))
    np.dtype(layout.dtype)
    return Entry(stamp, layout, int(line["max_id"]), str(line["sha256"]), int(line["text_bytes"]))


_KINDS = (str, str, int, int, int, str)
