"""Shards: which files, or which bytes of a file, are read together, and the records in them.

Shards depend on the files and `shard_mb` alone, never on workers, so that what becomes of them does not either.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigjax.errors import named
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Record

Reader = Callable[[str, Path, tuple[str, ...]], Iterator[tuple[str, Any]]]
"""`(name, path, columns)` -> the name and the values of the columns of each record; "*" is all columns as one dict."""

FIRST_BYTES = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\x00")
"""What compressed files start with; they are read whole."""


@dataclass(frozen=True)
class Piece:
    """A file, or the lines of one that start at bytes `start` to `stop`, not included; None: to the end."""

    kind: str
    path: str
    start: int = 0
    stop: int | None = None


Shard = tuple[Piece, ...]


def shards(files: Sequence[tuple[str, Path]], shard_bytes: int) -> list[Shard]:
    """Return the shards of files, each with its kind: small files together, long files of JSON lines in pieces.

    Raises:
      PrepareError: a file cannot be read.
    """
    found: list[Shard] = []
    open_shard: list[Piece] = []
    filled = 0
    for kind, path in files:
        try:
            size = path.stat().st_size
            pieces = _pieces(kind, path, size, shard_bytes)
        except OSError as error:
            raise PrepareError(f"{path} cannot be read: {error.strerror}") from error
        for piece in pieces:
            length = (size if piece.stop is None else piece.stop) - piece.start
            if open_shard and filled + length > shard_bytes:
                found.append(tuple(open_shard))
                open_shard, filled = [], 0
            open_shard.append(piece)
            filled += length
    return [*found, tuple(open_shard)] if open_shard else found


def _pieces(kind: str, path: Path, size: int, shard_bytes: int) -> list[Piece]:
    if kind != "jsonl" or size <= shard_bytes:
        return [Piece(kind, str(path))]
    starts = [0]
    with path.open("rb") as file:
        if file.read(8).startswith(FIRST_BYTES):
            return [Piece(kind, str(path))]
        while starts[-1] + shard_bytes < size:
            file.seek(starts[-1] + shard_bytes)
            file.readline()
            if file.tell() >= size:
                break
            starts.append(file.tell())
    return [Piece(kind, str(path), *ends) for ends in zip(starts, [*starts[1:], size], strict=True)]


def read(shard: Shard, readers: Mapping[str, Reader]) -> Iterator[tuple[str, Record]]:
    """Yield the place, for messages, and the record of each record of a shard.

    Raises:
      PrepareError: a file cannot be read, or a line is not UTF-8 or no JSON object.
    """
    for piece in shard:
        path = Path(piece.path)
        try:
            if piece.stop is not None:
                yield from json_lines(path, piece.start, piece.stop)
                continue
            for name, value in readers[piece.kind](path.name, path, ("*",)):
                yield f"{path} ({name})", value if isinstance(value, dict) else dict(value[0])
        except OSError as error:
            raise PrepareError(f"{path} cannot be read: {error.strerror}") from error


def json_lines(path: Path, start: int, stop: int) -> Iterator[tuple[str, Record]]:
    """Yield the place and the object of each line of JSON that starts at bytes `start` to `stop`, not included.

    Raises:
      PrepareError: a line is not UTF-8 or no JSON object.
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(start)
        while (at := file.tell()) < stop:
            line = file.readline()
            place = f"{path}, byte {at}"
            try:
                record = json.loads(line.decode().removeprefix("\ufeff")) if line.strip() else None
            except UnicodeDecodeError as error:
                raise PrepareError(f"{place}: not UTF-8 ({error.reason}): convert it, for example with iconv") from None
            except (ValueError, RecursionError) as error:
                raise PrepareError(f"{place}: not JSON ({named(error)[:120]})") from None
            if record is None:
                continue
            if b"\\ud" in line.lower():
                _check_surrogates(record, place)
            if not isinstance(record, dict):
                raise PrepareError(f"{place}: a JSON object is needed, not {type(record).__name__}")
            yield place, record


def _check_surrogates(record: Any, place: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no UTF-8 can hold."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise PrepareError(f"{place}: half a surrogate pair, which is no character: take it out") from None


def digests(shard: Shard) -> list[dict[str, Any]]:
    """Return the file, the range of bytes and the sha256 of each piece of a shard.

    Raises:
      PrepareError: a file cannot be read.
    """
    found = []
    for piece in shard:
        digest, left = hashlib.sha256(), -1 if piece.stop is None else piece.stop - piece.start
        try:
            with Path(piece.path).open("rb") as file:
                file.seek(piece.start)
                while left and (block := file.read(2**20 if left < 0 else min(left, 2**20))):
                    digest.update(block)
                    left -= len(block) if left > 0 else 0
                stop = file.tell()
        except OSError as error:
            raise PrepareError(f"{piece.path} cannot be read: {error.strerror}") from error
        found.append({"file": piece.path, "start": piece.start, "stop": stop, "sha256": digest.hexdigest()})
    return found


def texts(field: str, files: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return the texts of files that a field of a step names: JSON lines, or a text each where the name ends with .txt.

    Args:
      columns: of JSON lines, those that count where a line has them.

    Raises:
      PrepareError: a file cannot be read, is not UTF-8 or has no text.
    """
    found = []
    for name in files:
        path, before = Path(name).expanduser(), len(found)
        try:
            if path.suffix == ".txt":
                found.append(path.read_text(encoding="utf-8"))
                continue
            for _, record in json_lines(path, 0, path.stat().st_size):
                found += [record[key] for key in columns if isinstance(record.get(key), str)]
        except OSError as error:
            raise PrepareError(f"{field}: {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PrepareError(f"{field}: {path} is not UTF-8 ({error.reason})") from None
        if len(found) == before:
            raise PrepareError(f"{field}: {path} has no text under {', '.join(columns)}")
    return found
