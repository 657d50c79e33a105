"""The files of a source in parts, each of which becomes a shard of tokens, whoever makes it and whenever.

Parts follow from the names and sizes of the files alone: as many small files as make a part of some size, or so much of
a large file of JSON lines. So any number of workers writes the same shards, and what is written is not written again.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.sources import readers
from bigjax.data.sources.compressed import MAGIC
from bigjax.data.sources.held_out import document_fraction
from bigjax.data.sources.opening import READERS, Document
from bigjax.data.stored import manifest, megatron
from bigjax.data.stored.layouts import claim_of, index_of
from bigjax.data.tokens.shards import encoded
from bigjax.data.tokens.tokenizers import Tokenizer

KINDS = ("text", *READERS)
"""Kinds of sources that lie in files."""

SIDES = ("train", "eval")


class Piece(NamedTuple):
    """A file, or the lines of one that start at bytes [start, stop).

    Attributes:
      name: relative to the folder of all files. size, mtime_ns: of the file when the parts were made.
    """

    path: str
    name: str
    size: int
    mtime_ns: int
    start: int
    stop: int


Part = list[Piece]


def parts_of(spec: str, part_bytes: int) -> list[Part]:
    """Return the parts of a source.

    Raises:
      DataError: it is none that lies in files, or has none.
    """
    kind, _, pattern = spec.partition(":")
    if kind not in KINDS or not pattern:
        raise DataError(
            f"{spec!r} does not lie in files of texts: give one of {', '.join(f'{kind}:GLOB' for kind in KINDS)}"
        )
    files, _ = readers.find_files(pattern)
    parts: list[Part] = [[]]
    room = part_bytes
    for name, path in readers.relative_names(files).items():
        status = path.stat()
        splits = kind == "jsonl" and status.st_size > part_bytes and not _compressed(path)
        starts = range(0, status.st_size, part_bytes) if splits else [0]
        for start in starts:
            stop = min(start + part_bytes, status.st_size) if splits else status.st_size
            if parts[-1] and stop - start > room:
                parts.append([])
                room = part_bytes
            parts[-1].append(Piece(str(path), name, status.st_size, status.st_mtime_ns, start, stop))
            room -= stop - start
    return parts


def _compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(max(map(len, MAGIC))).startswith(tuple(MAGIC))


def read_piece(kind: str, piece: Piece, text_key: str) -> Iterator[Document]:
    """Yield the documents of a piece.

    Raises:
      DataError: as its reader; or the file is not what it was when the parts were made.
    """
    path = Path(piece.path)
    for _ in _while_unchanged(piece):
        if kind == "text":
            yield from readers.read_text(piece.name, path)
        elif piece.stop - piece.start < piece.size:
            lines = _lines(path, piece.start, piece.stop)
            place = f"{path}, after byte {piece.start:,}"
            yield from readers.json_texts(piece.name, place, lines, text_key)
        else:
            yield from READERS[kind](piece.name, path, text_key)


def _while_unchanged(piece: Piece) -> Iterator[None]:
    for turn in range(2):
        try:
            status = Path(piece.path).stat()
        except OSError as error:
            raise DataError(f"{piece.path} cannot be read: {error.strerror}") from None
        if (status.st_size, status.st_mtime_ns) != (piece.size, piece.mtime_ns):
            raise DataError(f"{piece.path} has changed since the work began: put it back, or choose another --out")
        if not turn:
            yield


def _lines(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Yield the lines of a file that start in [start, stop)."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        while file.tell() < stop and (line := file.readline()):
            yield line


def write_part(
    folder: Path,
    number: int,
    kind: str,
    part: Part,
    tokenizer: Tokenizer,
    text_key: str,
    holdout: float,
    told: Callable[[int], None],
) -> dict[str, str]:
    """Tokenise a part into a shard for each side that has a document of it, in Megatron's format; return their rows.

    Args:
      folder: has a folder for each of `SIDES`. number: of the part, by which its shards are called.
      holdout: as `data.holdout`. told: is told of bytes that have been tokenised, which sum to those of the files.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    name, temporary = f"{number:06}.bin", f".{number:06}.{uuid.uuid4().hex}.bin"
    for left in folder.glob(f"*/.{number:06}.*"):  # by a worker that was killed
        left.unlink()
    counts, sizes = dict.fromkeys(SIDES, 0), dict.fromkeys(SIDES, 0)
    documents = (document for piece in part for document in read_piece(kind, piece, text_key))
    with (
        megatron.Writer(folder / "train" / temporary, dtype) as train,
        megatron.Writer(folder / "eval" / temporary, dtype) as held_out,
    ):
        writers = {"train": train, "eval": held_out}
        for _, text, ids in encoded(documents, tokenizer, tokenizer.opening):
            side = SIDES[bool(holdout) and document_fraction(text) < holdout]
            writers[side].add(ids)
            size = len(text.encode())
            counts[side] += 1
            sizes[side] += size
            told(size)
    # Of JSON, or of what is compressed, the file has more or fewer bytes than its texts.
    told(sum(piece.stop - piece.start for piece in part) - sum(sizes.values()))
    rows = {}
    for side in SIDES:
        written = folder / side / temporary
        if not counts[side]:
            written.unlink()
            index_of(written).unlink()
            continue
        place = folder / side / name
        for suffix in (".idx", ".bin"):
            written.with_suffix(suffix).replace(place.with_suffix(suffix))
        row = manifest.read_shard(place, folder)
        row["claims"], row["text_bytes"] = claim_of(tokenizer.digest).encode(), sizes[side]
        rows[side] = row.tobytes().hex()
    return rows


def write_manifests(folder: Path, rows: Sequence[dict[str, str]]) -> dict[str, tuple[int, int]]:
    """Write the manifest of each side; return how many documents and tokens it has.

    Args:
      rows: what `write_part` returned of each part, in order.
    """
    sizes: dict[str, tuple[int, int]] = dict.fromkeys(SIDES, (0, 0))
    for side in SIDES:
        found = {number: row[side] for number, row in enumerate(rows) if side in row}
        names = np.array([f"{number:06}.bin".encode() for number in found])
        if found:
            table = np.frombuffer(bytes.fromhex("".join(found.values())), manifest.ROW)
            manifest.write(folder / side / manifest.NAME, names, table)
            sizes[side] = int(table["documents"].sum()), int(table["tokens"].sum())
    return sizes


def described(spec: str, text_key: str, holdout: float, tokenizer: str, parts: Iterable[Part]) -> dict[str, Any]:
    """Return all that the shards depend on, as JSON-able values.

    Args:
      tokenizer: what tells it from others.
    """
    pieces = [[list(piece[1:]) for piece in part] for part in parts]
    how = {"kind": spec.partition(":")[0], "text_key": text_key, "holdout": holdout, "tokenizer": tokenizer}
    return how | {"files": pieces}
