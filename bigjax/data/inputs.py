"""Records to be answered: one file, or standard input, read a record at a time with all of its columns."""

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bigjax.data.errors import DataError
from bigjax.data.sources.compressed import opened
from bigjax.data.sources.readers import decode, find_files
from bigjax.errors import brief, listed

STANDARD = "-"
"""What stands for standard input."""

KINDS = ("csv", "tsv", "jsonl", "parquet", "txt")
"""Forms of files, which are their suffixes, too; `txt` has a text on each line."""

COMPRESSED = (".gz", ".zst", ".bz2")

LONGEST_FIELD = 2**31 - 1
"""Characters of a field of a table, which Python's csv otherwise ends at 131,072."""


class Record(NamedTuple):
    """The columns of a record, and where it stands, for messages."""

    place: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """Where records come from.

    Attributes:
      name: what messages call it. path: None for standard input. kind: one of `KINDS`.
      columns: those that each record must have.
    """

    name: str
    path: Path | None
    kind: str
    columns: tuple[str, ...]

    def read(self) -> Iterator[Record]:
        """Yield every record.

        Raises:
          DataError: the file is not what its kind says, or a record lacks one of `columns`; there is no record.
        """
        readers: dict[str, Callable[[], Iterator[Record]]] = {
            "csv": lambda: self._table(","),
            "tsv": lambda: self._table("\t"),
            "jsonl": self._json,
            "parquet": self._parquet,
            "txt": self._plain,
        }
        records = readers[self.kind]()
        first = next(records, None)
        if first is None:
            raise DataError(f"{self.name} has no records")
        return itertools.chain([first], records)

    def schema(self) -> Any:
        """Return the Arrow schema of a Parquet file, None of other kinds."""
        if self.kind != "parquet":
            return None
        with self._parquet_file() as file:
            return file.schema_arrow

    @contextlib.contextmanager
    def _bytes(self) -> Iterator[BinaryIO]:
        if self.path is None:
            yield sys.stdin.buffer
            return
        with opened(self.path) as file:
            yield file

    def _lines(self) -> Iterator[str]:
        offset = 0
        with self._bytes() as file:
            for number, line in enumerate(file, start=1):
                text = decode(line, f"{self.name}, line {number},", offset)
                offset += len(line)
                yield text.removeprefix("\ufeff") if number == 1 else text

    def _plain(self) -> Iterator[Record]:
        for number, line in enumerate(self._lines(), start=1):
            yield Record(f"{self.name}, line {number}", {self.columns[0]: line.rstrip("\r\n")})

    def _json(self) -> Iterator[Record]:
        for number, line in enumerate(self._lines(), start=1):
            place = f"{self.name}, line {number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                plain = "; for a text on each line, say so with --format=txt" if number == 1 else ""
                raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno}){plain}") from None
            except (ValueError, RecursionError) as error:  # a number of too many digits, or too many brackets
                raise DataError(f"{place}: JSON that Python does not read ({error})") from None
            if not isinstance(values, dict):
                raise DataError(f"{place}: a JSON object is needed, not {type(values).__name__}")
            self._check(place, values)
            yield Record(place, values)

    def _table(self, delimiter: str) -> Iterator[Record]:
        csv.field_size_limit(LONGEST_FIELD)
        rows = csv.reader(self._lines(), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            if twice := [name for name in header if header.count(name) > 1]:
                raise DataError(f"{self.name}: the first line names the column {brief(twice[0])} twice")
            self._check(f"{self.name}, line 1", dict.fromkeys(header))
            for fields in rows:
                if not fields:  # a blank line
                    continue
                place = f"{self.name}, line {rows.line_num}"
                if len(fields) != len(header):
                    raise DataError(f"{place}: {len(fields)} fields, but the first line names {len(header)}")
                yield Record(place, dict(zip(header, fields, strict=True)))
        except csv.Error as error:
            raise DataError(f"{self.name}, line {rows.line_num}: not a table: {error}") from None

    @contextlib.contextmanager
    def _parquet_file(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name} cannot be read as Parquet: {error}") from None

    def _parquet(self) -> Iterator[Record]:
        with self._parquet_file() as file:
            self._check(self.name, dict.fromkeys(file.schema_arrow.names))
            row = 0
            for batch in file.iter_batches(batch_size=256):
                try:
                    records = batch.to_pylist()
                except UnicodeDecodeError:  # Arrow does not check UTF-8 when it reads
                    raise DataError(f"{self.name}, rows {row} to {row + len(batch) - 1}: a text is not UTF-8") from None
                for values in records:
                    yield Record(f"{self.name}, row {row}", values)
                    row += 1

    def _check(self, place: str, values: dict[str, Any]) -> None:
        for name in self.columns:
            if name not in values:
                there = listed(map(repr, values)) or "none"
                raise DataError(f"{place}: no column {name!r}, only {there}")


def open_inputs(name: str, kind: str | None, columns: tuple[str, ...]) -> Inputs:
    """Return the records of a file, or of standard input for `STANDARD`.

    Args:
      kind: one of `KINDS`; None goes by the file's suffix, and takes standard input for JSON lines.

    Raises:
      DataError: there is no such file, or none, or several; it has no known suffix; a kind that cannot give `columns`.
    """
    path = None
    if name != STANDARD:
        files, _ = find_files(name)
        if len(files) > 1:
            raise DataError(f"--inputs={name!r} names {len(files)} files: give one at a time")
        path = files[0]
    found = kind or ("jsonl" if path is None else _suffix(path))
    if found not in KINDS:
        raise DataError(f"--inputs={name!r}: its suffix is none of {', '.join(KINDS)}: say its form with --format")
    if found == "parquet" and path is None:
        raise DataError("--inputs=-: Parquet is read from its end, so not from standard input: give a file")
    if found == "txt" and len(columns) > 1:
        raise DataError(
            f"--inputs={name!r} has one text a line, but {' and '.join(map(repr, columns))} are needed: give CSV, TSV, "
            "JSON lines or Parquet with these columns"
        )
    return Inputs("standard input" if path is None else str(path), path, found, columns)


def _suffix(path: Path) -> str:
    path = path.with_suffix("") if path.suffix in COMPRESSED else path
    return path.suffix.removeprefix(".").lower()
