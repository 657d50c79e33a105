"""Records and their answers written to a file as they come: JSON lines, tables, Parquet."""

import contextlib
import csv
import datetime
import decimal
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bigjax.data import DataError
from bigjax.data.inputs import Record
from bigjax.errors import UserError, brief
from bigjax.run.json_files import dumps

STANDARD = "-"
"""What stands for standard output, which gets JSON lines."""

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")

Answered = Sequence[tuple[Record, Mapping[str, Any]]]
Write = Callable[[Answered], None]


def check_out(out: str, inputs: str | Path | None) -> None:
    """Raise UserError unless records can be written to such a file."""
    if out == STANDARD:
        return
    if Path(out).suffix not in SUFFIXES:
        raise UserError(
            f"--out={brief(out)}: its suffix must be {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or give -"
        )
    if inputs is not None and Path(out).exists() and Path(out).samefile(inputs):
        raise UserError(f"--out={out} is the file of --inputs: give another, so that this one stays")


@contextlib.contextmanager
def writing(out: str, like: Mapping[str, Any], schema: Any = None) -> Iterator[Write]:
    """Give the function that writes records with their answers; a file is there whole at the end, or not at all.

    Args:
      out: a path with one of `SUFFIXES`, or `STANDARD`. like: an answer with the names and types of all.
      schema: the Arrow schema of the records, where they have one.

    Raises:
      DataError: where a table has columns, a record has others, or values of other types, than the first ones.
    """
    if out == STANDARD:
        yield _json(sys.stdout)
        return
    path, suffix = Path(out), Path(out).suffix
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        if suffix == ".parquet":
            with _parquet(partial, like, schema) as write:
                yield write
        else:
            with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield _json(file) if suffix == ".jsonl" else _table(file, like, {".csv": ",", ".tsv": "\t"}[suffix])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _json(file: IO[str]) -> Write:
    def write(answered: Answered) -> None:
        for record, answer in answered:
            file.write(dumps({name: _plain(value, record, name) for name, value in record.values.items()} | {**answer}))
            file.write("\n")
        file.flush()

    return write


def _table(file: IO[str], like: Mapping[str, Any], delimiter: str) -> Write:
    rows, header = csv.writer(file, delimiter=delimiter, lineterminator="\n"), _Header(like)

    def cell(value: Any, record: Record, name: str) -> Any:
        value = _plain(value, record, name)
        if isinstance(value, list | dict | bool):
            return json.dumps(value, ensure_ascii=False)
        return value

    def write(answered: Answered) -> None:
        for record, answer in answered:
            if header.names is None:
                rows.writerow([*header.of(record), *like])
            names = header.of(record)
            row = {**record.values, **answer}
            rows.writerow([cell(row.get(name), record, name) for name in (*names, *like)])

    return write


@contextlib.contextmanager
def _parquet(path: Path, like: Mapping[str, Any], schema: Any) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    header, writer = _Header(like), None

    def full_schema(rows: list[dict[str, Any]]) -> Any:
        try:
            found = pa.Table.from_pylist(rows).schema if schema is None else schema
        except pa.ArrowException as error:
            raise DataError(f"the records have columns of several types ({error}): write .jsonl") from None
        # A column of which nothing is known so far holds texts.
        fields = [pa.field(each.name, pa.string() if pa.types.is_null(each.type) else each.type) for each in found]
        return pa.schema([*fields, *(pa.field(name, pa.array([value]).type) for name, value in like.items())])

    def write(answered: Answered) -> None:
        nonlocal writer
        rows = [{name: record.values.get(name) for name in header.of(record)} for record, _ in answered]
        if writer is None:
            writer = pq.ParquetWriter(path, full_schema(rows))
        given = [row | {**answer} for row, (_, answer) in zip(rows, answered, strict=True)]
        try:
            table = pa.Table.from_pylist(given, schema=writer.schema)
        except pa.ArrowException as error:
            first, last = answered[0][0].place, answered[-1][0].place
            raise DataError(f"between {first} and {last} a column has another type ({error}): write .jsonl") from None
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


class _Header:
    """The columns of a table before those of the answers: those of its first record."""

    def __init__(self, like: Mapping[str, Any]):
        self._like, self.names = like, None

    def of(self, record: Record) -> tuple[str, ...]:
        """Return the columns.

        Raises:
          DataError: the record has another.
        """
        if self.names is None:
            self.names = tuple(record.values)
        if more := set(record.values) - set(self.names):
            raise DataError(
                f"{record.place}: the first record has no {brief(min(more))}, so that a table has no column for it: "
                "write .jsonl"
            )
        return self.names


def _plain(value: Any, record: Record, name: str) -> Any:
    """Return a value as JSON has it: dates and exact numbers of Parquet as texts.

    Raises:
      DataError: bytes are no text.
    """
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        raise DataError(f"{record.place}: {brief(name)} holds bytes, which only .parquet can carry along")
    if isinstance(value, dict):
        return {key: _plain(each, record, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, record, name) for each in value]
    return value
