"""Token ids in tables: Parquet with a column `input_ids`, and ArrayRecord with `tf.train.Example` that have one.

Neither can be read at any place, so they are written once as shards, a document a row, into the cache.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.stored import manifest, megatron
from bigjax.data.tokens.cache import content_key, make_once

COLUMN = "input_ids"
FORMAT = 1
ROWS = 1024
"""Rows that are read at a time."""


class _Wide(Exception):
    """An id needs more than 16 bits."""


def convert(paths: Sequence[Path], digests: Sequence[str], root: Path) -> Path:
    """Return the folder of shards with the documents of files, in order, from the cache below `root` if it is there.

    Args:
      digests: sha256 of each file.

    Raises:
      DataError: a file cannot be read, has no such column, or an id is missing, below 0, or beyond 31 bits.
    """
    folder = root / "converted" / content_key(FORMAT, list(digests))
    make_once(folder, lambda temporary: _write(paths, temporary))
    return folder


def _write(paths: Sequence[Path], folder: Path) -> None:
    claims = {claim for path in paths if (claim := claimed(path))}
    try:
        names = _shards(folder, paths, np.dtype(np.uint16))
    except _Wide:
        names = _shards(folder, paths, np.dtype(np.int32))
    rows = np.array(list(manifest.read_shards([folder / name for name in names], folder)))
    rows["claims"] = ", ".join(sorted(claims)).encode()[:32]
    manifest.write(folder / manifest.NAME, np.array([name.encode() for name in names]), rows)


def _shards(folder: Path, paths: Sequence[Path], dtype: np.dtype) -> list[str]:
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1), "convert") as pool:
        return list(pool.map(lambda number: _shard(folder, number, paths[number], dtype), range(len(paths))))


def _shard(folder: Path, number: int, path: Path, dtype: np.dtype) -> str:
    name, limit, count = f"{number:06}.bin", np.iinfo(dtype).max, 0
    with megatron.Writer(folder / name, dtype) as writer:
        for place, ids in documents(path):
            if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > limit):
                if dtype == np.uint16 and int(ids.min()) >= 0:
                    raise _Wide
                raise DataError(f"{place}: {COLUMN} has the id {_outside(ids, limit)}, and ids go from 0 to {limit:,}")
            writer.add(ids)
            count += 1
    if not count:
        raise DataError(f"{path} holds no row, or is no {suffix(path)[1:]} file: leave it out")
    return name


def _outside(ids: np.ndarray, limit: int) -> int:
    return int(ids[(ids < 0) | (ids > limit)][0])


def documents(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the place of each row, for messages, and its ids, int64."""
    readers: dict[str, Callable[[Path], Iterator[tuple[str, np.ndarray]]]] = {
        ".parquet": _parquet,
        ".array_record": _array_record,
        ".arecord": _array_record,
    }
    return readers[suffix(path)](path)


SUFFIXES = (".parquet", ".array_record", ".arecord")


def suffix(path: Path | str) -> str:
    """Return which of `SUFFIXES` a file has; that of TensorFlow Datasets' shards comes before `-00000-of-00001`."""
    name = Path(path).name
    return next((each for each in SUFFIXES if name.endswith(each) or f"{each}-" in name), "")


def claimed(path: Path) -> str:
    """Return the tokenizer that the metadata of a Parquet file names, if it does."""
    if suffix(path) != ".parquet":
        return ""
    with _parquet_file(path) as file:
        return (file.schema_arrow.metadata or {}).get(b"tokenizer", b"").decode(errors="replace")


def _parquet_file(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_line(error)}") from None


def _parquet(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    import pyarrow as pa

    with _parquet_file(path) as file:
        schema = file.schema_arrow
        kind = schema.field(COLUMN).type if COLUMN in schema.names else None
        is_list = kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
        if kind is None or not is_list or not pa.types.is_integer(kind.value_type):
            there = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:10])
            raise DataError(f"{path} has no column {COLUMN} of lists of whole numbers, only {there or 'none'}")
        row = 0
        try:
            for batch in file.iter_batches(ROWS, columns=[COLUMN]):
                column = batch.column(0)
                if column.null_count or column.values.null_count:
                    raise DataError(f"{path}, rows {row} to {row + len(column) - 1}: {COLUMN} is missing somewhere")
                ends, values = np.asarray(column.offsets), column.values.to_numpy(zero_copy_only=False)
                for number in range(len(column)):
                    yield f"{path}, row {row + number}", values[ends[number] : ends[number + 1]].astype(np.int64)
                row += len(column)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}, row {row} and later cannot be read as Parquet: {_line(error)}") from None


def _array_record(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from array_record.python.array_record_module import ArrayRecordReader
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    example: Any = vars(tf_example_generated_pb2)["Example"]  # made when it is imported
    try:
        reader = ArrayRecordReader(str(path))
        for number in range(reader.num_records()):
            place = f"{path}, record {number}"
            feature = example.FromString(reader.read()).features.feature
            if COLUMN not in feature or feature[COLUMN].WhichOneof("kind") != "int64_list":
                there = ", ".join(sorted(feature)[:10]) or "none"
                raise DataError(f"{place}: no {COLUMN} of whole numbers, only {there[:200]}")
            yield place, np.array(feature[COLUMN].int64_list.value, np.int64)
    except (RuntimeError, ValueError, IndexError, OSError, DecodeError) as error:
        raise DataError(f"{path} cannot be read as ArrayRecord of tf.train.Example: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
