"""Readers of local files: they yield (name, text) documents and name the file, line or byte of what they reject.

Lines and offsets of compressed files are those of what they hold.
"""

import contextlib
import glob
import hashlib
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bigjax.data.errors import DataError
from bigjax.data.sources.compressed import contents, opened
from bigjax.paths import as_path, fetched, is_remote, matching


class Found(NamedTuple):
    """Files, and what is to be said of others."""

    files: list[Path]
    notes: tuple[str, ...] = ()


def find_files(pattern: str) -> Found:
    """Return the files that match a glob (`~` and `**` allowed) or have it for a name, sorted; empty ones in the notes.

    Raises:
      DataError: nothing matches, it is a folder, a link leads nowhere, or all files are empty.
    """
    if is_remote(pattern):
        return _in_store(pattern)
    expanded = os.path.expanduser(pattern)  # noqa: PTH111 - a Path would collapse the pattern
    if Path(expanded).is_dir():
        raise DataError(f"{pattern!r} is a folder: name the files in it, as in {_inside(Path(expanded), pattern)!r}")
    names = glob.glob(_literal(expanded), recursive=True)  # noqa: PTH207 - patterns may be absolute
    paths = sorted(map(Path, names))
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link that leads nowhere: mend it or leave it out of {pattern!r}")
    files = [path for path in paths if path.is_file()]
    if not files:
        raise DataError(f"no file matches {pattern!r} (working folder: {Path.cwd()})")
    empty = [path for path in files if path.stat().st_size == 0]
    if len(empty) == len(files):
        raise DataError(f"{empty[0]} is empty: remove it or leave it out of {pattern!r}")
    return Found([path for path in files if path not in empty], tuple(f"{path} is empty" for path in empty))


def _in_store(pattern: str) -> Found:
    """Return copies on the disk of the objects that a URL matches."""
    place = as_path(pattern)
    matched = [place] if place.is_file() else [path for path in matching(pattern) if path.is_file()]
    if not matched:
        hint = f": name the files in it, as in {pattern.rstrip('/') + '/*'!r}" if place.is_dir() else ""
        raise DataError(f"no file matches {pattern!r}{hint}")
    empty = [path for path in matched if path.stat().st_size == 0]
    if len(empty) == len(matched):
        raise DataError(f"{empty[0]} is empty: remove it or leave it out of {pattern!r}")
    return Found(fetched([path for path in matched if path not in empty]), tuple(f"{path} is empty" for path in empty))


def _literal(pattern: str) -> str:
    """Return a pattern in which brackets and the like stand for themselves where folders or a file are called so."""
    parts = pattern.split("/")
    for i in range(len(parts)):
        if not os.path.lexists("/".join(parts[: i + 1]) or "/"):
            return "/".join([*map(glob.escape, parts[:i]), *parts[i:]])
    return glob.escape(pattern)


def _inside(folder: Path, pattern: str) -> str:
    """Return a pattern for the files in a folder of the kind that it has most of."""
    kinds = Counter(path.suffix for path in folder.iterdir() if path.is_file())
    return f"{pattern.rstrip('/')}/*{max(kinds, key=lambda kind: kinds[kind], default='')}"


def relative_names(files: list[Path]) -> dict[str, Path]:
    """Name files relative to their common folder, so that names do not change when a corpus moves."""
    root = Path(os.path.commonpath([path.resolve().parent for path in files]))
    return {path.resolve().relative_to(root).as_posix(): path for path in files}


REMEMBERED = 2**20
"""Bytes of a file from which on its hash is kept."""

SETTLED_NS = 2 * 10**9
"""Age from which on a change of a file shows in its times, on any file system."""


def file_digest(path: Path, root: Path | None = None) -> str:
    """Return the sha256 of a file's bytes.

    Args:
      root: cache folder, where the hash of a large file is kept for as long as its size and times, among them that of
        the last change of its status, which nobody can set, stay as they are.
    """
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED_NS
        if root is None or before.st_size < REMEMBERED or not settled:
            return hashlib.file_digest(file, "sha256").hexdigest()
        state = [before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
        name = hashlib.sha256(json.dumps([str(path.resolve()), *state]).encode()).hexdigest()
        kept = root / "digests" / name
        with contextlib.suppress(OSError):
            if len(digest := kept.read_text()) == 64:
                return digest
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_ctime_ns) == (before.st_size, before.st_ctime_ns):
        with contextlib.suppress(OSError):  # it is kept to save time alone
            kept.parent.mkdir(exist_ok=True)
            mine = kept.with_name(f"{name}.{uuid.uuid4().hex}")
            mine.write_text(digest)
            mine.replace(kept)
    return digest


def decode(content: bytes, place: str, offset: int = 0) -> str:
    """Decode UTF-8.

    Args:
      content: the bytes.
      place: what to call their origin in the error.
      offset: position of `content` in that origin, in bytes.

    Raises:
      DataError: the bytes are not UTF-8; gives the offset of the first bad one.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} is not UTF-8: byte 0x{content[error.start]:02x} at byte offset {offset + error.start} "
            f"({error.reason}); convert it, for example with iconv"
        ) from None


def read_text(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the one document of a plain text file, line ends untouched."""
    yield name, decode(contents(path), str(path))


def spelled(value: Any) -> Any:
    """Return a whole number or a truth value, as a label may be, as the text that a table has: `1`, `true`, `false`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


def read_jsonl(name: str, path: Path, text_key: str, labels: bool = False) -> Iterator[tuple[str, str]]:
    """Yield a document per line of JSON; blank lines are skipped.

    Args:
      labels: whether a value may be a whole number or a truth value, too.

    Raises:
      DataError: a line is not UTF-8, not a JSON object, or lacks a string under `text_key`.
    """
    with opened(path) as lines:
        yield from json_texts(name, str(path), lines, text_key, labels)


def json_texts(
    name: str, place: str, lines: Iterable[bytes], text_key: str, labels: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield a document per line of JSON, as `read_jsonl`; `place` is what errors call their origin."""
    for number, record in _json_objects(lines, place, (text_key,)):
        text = spelled(record[text_key]) if labels else record[text_key]
        if not isinstance(text, str):
            raise DataError(f"{place}, line {number}: {text_key!r} is {type(text).__name__}, not a string")
        yield f"{name}:{number}", _of_characters(text, place, number)


OPTIONAL = ("is_impossible",)
"""Columns that a record may lack; they are asked for last."""

ALL = "*"
"""Asked for as a column: all of a record, a mapping from columns to values."""


def picked(record: Mapping[str, Any], keys: tuple[str, ...]) -> tuple:
    """Return the values of some columns of a record, of those that it has."""
    return tuple(record if key == ALL else record[key] for key in keys if key == ALL or key in record)


def read_records(name: str, path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, tuple]]:
    """Yield the values of some keys of each line of JSON, without those of `OPTIONAL` that it lacks.

    Raises:
      DataError: as `read_jsonl`, of any kind of value.
    """
    with opened(path) as lines:
        for number, record in _json_objects(
            lines, str(path), tuple(key for key in keys if key not in (*OPTIONAL, ALL))
        ):
            values = picked(record, keys)
            _of_characters(json.dumps(values, ensure_ascii=False), str(path), number)
            yield f"{name}:{number}", values


def _of_characters(text: str, path: str, number: int) -> str:
    """Return a text of a line of JSON, in which half a surrogate pair can be spelt that no UTF-8 can hold.

    Raises:
      DataError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{path}, line {number}: {code} is half a surrogate pair, no character: take it out") from None
    return text


def read_conll(name: str, path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, tuple]]:
    """Yield the words and the tags of each sentence, of a file with a word and its tag on each line.

    Of more columns the first and the last are taken. Blank lines, and those of CoNLL-2003 that start with -DOCSTART-,
    end a sentence (Tjong Kim Sang & De Meulder 2003).

    Raises:
      DataError: the file is not UTF-8, or a line has a word and no tag.
    """
    del keys
    words: list[str] = []
    tags: list[str] = []
    lines = decode(contents(path), str(path)).removeprefix("\ufeff").split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            if len(columns) < 2:
                raise DataError(f"{path}, line {number}: the word {columns[0]!r} has no tag")
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            yield f"{name}:{number - len(words)}", (words, tags)
            words, tags = [], []


def _json_objects(lines: Iterable[bytes], path: str, keys: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank, which must have some keys."""
    offset = 0
    for number, line in enumerate(lines, start=1):
        text_line, offset = decode(line, f"{path}, line {number},", offset), offset + len(line)
        if number == 1:
            text_line = text_line.removeprefix("\ufeff")
        if not text_line.strip():
            continue
        try:
            record = json.loads(text_line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number of too many digits, or too many brackets
            raise DataError(f"{path}, line {number}: JSON that Python does not read ({error})") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: a JSON object is needed, not {type(record).__name__}")
        for key in keys:
            if key not in record:
                raise DataError(f"{path}, line {number}: no key {key!r}, only {', '.join(map(repr, record))}")
        yield number, record
