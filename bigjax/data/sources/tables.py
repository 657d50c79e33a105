"""Readers of tables: CSV, TSV, Parquet, and the data sets that come with scikit-learn.

`read_*` yield (name, text) of one column; `read_*_records` (name, values) of several, values of whatever kind they are.
"""

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigjax.data.errors import DataError
from bigjax.data.sources.compressed import contents
from bigjax.data.sources.readers import ALL, decode, picked

Record = tuple[str, tuple]
"""Name and values."""


def read_table(
    name: str, path: Path, text_key: str, labels: bool = False, *, delimiter: str
) -> Iterator[tuple[str, str]]:
    """Yield a document per record of a table whose first line names the columns; quoted as in RFC 4180.

    Args:
      labels: changes nothing, as all values are texts.

    Raises:
      DataError: the file is not UTF-8, no column is called `text_key`, or a record has not as many fields as columns.
    """
    del labels
    for line, record in _table_lines(path, (text_key,), delimiter):
        yield f"{name}:{line}", record[text_key]


def _table_lines(path: Path, keys: tuple[str, ...], delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the fields of each record, which must have some keys."""
    text = decode(contents(path), str(path)).removeprefix("\ufeff")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a document may be longer than the module's limit
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = next(records)
        _check_columns(str(path), keys, columns)
        for fields in records:
            if len(fields) != len(columns):
                raise DataError(
                    f"{path}, line {records.line_num}: {len(fields)} fields, but the first line names {len(columns)}"
                )
            yield records.line_num, dict(zip(columns, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {records.line_num}: not a table: {error}") from None


def _check_columns(place: str, keys: tuple[str, ...], columns: list[str]) -> None:
    for key in keys:
        if key not in (ALL, *columns):
            raise DataError(f"{place}: no column {key!r}, only {', '.join(map(repr, columns))}")


def without_rows(files: list[Path]) -> list[Path]:
    """Return the Parquet files that have no rows; what cannot be read is left to `read_parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for path in files:
        with contextlib.suppress(pa.ArrowException, OSError):
            if pq.read_metadata(path).num_rows == 0:
                found.append(path)
    return found


def read_parquet(name: str, path: Path, text_key: str, labels: bool = False) -> Iterator[tuple[str, str]]:
    """Yield a document per row of a Parquet file, read a batch of rows at a time.

    Args:
      labels: as for `read_jsonl`.

    Raises:
      DataError: the file is not Parquet, has no rows, no column `text_key`, or a row without a UTF-8 string.
    """
    import pyarrow as pa

    with _parquet(path, (text_key,)) as file:
        row = 0
        for batch in _batches(file, path, [text_key]):
            column = batch.column(0)
            if pa.types.is_dictionary(column.type):  # what a column of categories is
                column = column.dictionary_decode()
            if labels and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
                column = column.cast(pa.string())  # as `spelled`
            text_types = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
            if not any(test(column.type) for test in text_types):
                raise DataError(f"{path}: column {text_key!r} holds {column.type}, not strings")
            # As bytes, since Arrow does not check UTF-8 when it reads.
            for value in column.cast(pa.large_binary()).to_pylist():
                if value is None:
                    raise DataError(f"{path}, row {row}: {text_key!r} is null")
                yield f"{name}:{row}", decode(value, f"{path}, row {row},")
                row += 1


def read_table_records(name: str, path: Path, keys: tuple[str, ...], *, delimiter: str) -> Iterator[Record]:
    """Yield the values of some columns of each record of a table, all strings.

    Raises:
      DataError: as `read_table`.
    """
    for line, record in _table_lines(path, keys, delimiter):
        yield f"{name}:{line}", picked(record, keys)


def read_parquet_records(name: str, path: Path, keys: tuple[str, ...]) -> Iterator[Record]:
    """Yield the values of some columns of each row of a Parquet file: strings, numbers, lists of them, or None.

    Raises:
      DataError: the file is not Parquet, has no rows, or lacks a column.
    """
    with _parquet(path, keys) as file:
        row = 0
        for batch in _batches(file, path, None if ALL in keys else list(keys)):
            for record in batch.to_pylist():
                yield f"{name}:{row}", picked(record, keys)
                row += 1


@contextlib.contextmanager
def _parquet(path: Path, keys: tuple[str, ...]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None
    with file:
        _check_columns(str(path), keys, file.schema_arrow.names)
        if file.metadata.num_rows == 0:
            raise DataError(f"{path} is empty: it has no rows")
        yield file


def _batches(file: Any, path: Path, columns: list[str] | None) -> Iterator[Any]:
    import pyarrow as pa

    batches = file.iter_batches(batch_size=1024, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:  # a page that is damaged, of a file whose end is not
            raise DataError(f"{path} cannot be read as Parquet: {error}") from None
        if batch is None:
            return
        yield batch


PACKAGED = ("diabetes", "breast_cancer", "wine", "digits")
"""The data sets inside scikit-learn's wheel that `sklearn:NAME` reads."""


def read_packaged(name: str, keys: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records of a data set of scikit-learn: its features by name, `target`, and `image` where it has one.

    Raises:
      DataError: there is none of this name, it lacks a column, or scikit-learn is not installed.
    """
    if name not in PACKAGED:
        raise DataError(f"sklearn:{name} is none of {', '.join(f'sklearn:{one}' for one in PACKAGED)}")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(f"sklearn:{name} needs scikit-learn: pip install scikit-learn") from error
    found: Any = getattr(datasets, f"load_{name}")()
    columns = {feature: found.data[:, place] for place, feature in enumerate(found.feature_names)}
    columns |= {"target": found.target, **({"image": found.images} if "images" in found else {})}
    _check_columns(f"sklearn:{name}", keys, list(columns))
    for row in range(len(found.target)):
        record = {column: values[row] for column, values in columns.items()}
        yield f"{name}:{row}", picked(record, keys)
