"""The values of some columns on the training side, which the steps on tables learn from."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigjax.errors import ConfigError
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Arrays, Record
from bigjax.prepare.writing import SIDE

TRAIN = "train"
"""The side that steps are fitted on, and that of all records where there are no sides."""

MARKS = ("", "NA", "N/A", "NaN", "nan", "null", "None", "?")
"""Texts that stand for a value that is missing."""


def is_missing(value: Any) -> bool:
    """Whether a value is none: None, NaN, or one of `MARKS`."""
    if isinstance(value, str):
        return value.strip() in MARKS
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any) -> float | None:
    """Return a value as a number if it is one, or the text of one, and finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def value_of(record: Record, column: str) -> Any:
    """Return the value of a column.

    Raises:
      PrepareError: the record has no such column.
    """
    if column not in record:
        shown = ", ".join(name for name in list(record)[:10] if name != SIDE)
        raise PrepareError(f"there is no column {column!r} but {shown}")
    return record[column]


def number_of(record: Record, column: str) -> float:
    """Return the value of a column of numbers.

    Raises:
      PrepareError: there is no such column, or its value is missing or no number.
    """
    value = value_of(record, column)
    if is_missing(value):
        raise PrepareError(f"column {column!r} has no value here: put the step `missing` before this one")
    found = number(value)
    if found is None:
        raise PrepareError(f"column {column!r} holds {str(value)[:40]!r}, not a number")
    return found


def named_columns(options: Any, step: str) -> tuple[str, ...]:
    """Return the columns that a step is to treat.

    Raises:
      ConfigError: there are none.
    """
    if not options.columns:
        raise ConfigError(f"{step}.columns is empty: name the columns")
    return options.columns


class Values:
    """The values of columns of the training records of a shard, all columns where none are named: an `Observer`."""

    def __init__(self, columns: Sequence[str]):
        self.columns = tuple(columns)
        self.values: dict[str, list[Any]] = {name: [] for name in self.columns}

    def add(self, place: int, record: Record) -> None:
        """Look at a record."""
        del place
        if record.get(SIDE, TRAIN) != TRAIN:
            return
        for name in self.columns or [name for name in record if name != SIDE]:
            self.values.setdefault(name, []).append(value_of(record, name))

    def arrays(self) -> Arrays:
        """Return the values as JSON in bytes."""
        content = json.dumps(self.values, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return {"values": np.frombuffer(content, np.uint8)}


def gathered(observed: Sequence[Arrays]) -> dict[str, list[Any]]:
    """Return the values of each column over all shards.

    Raises:
      PrepareError: there are no training records.
    """
    found: dict[str, list[Any]] = {}
    for shard in observed:
        for name, values in json.loads(shard["values"].tobytes().decode("utf-8", "surrogatepass")).items():
            found.setdefault(name, []).extend(values)
    if not any(found.values()):
        raise PrepareError("there are no training records to learn from")
    return found


def numbers(values: Sequence[Any], column: str) -> np.ndarray:
    """Return the values of a column of numbers, as float64 (n, 1).

    Raises:
      PrepareError: one is missing or no number.
    """
    return np.array([[number_of({column: value}, column)] for value in values])


def stored(learnt: Any) -> Arrays:
    """Return what a step learnt as a state, which is also written to the folder."""
    return {"json": np.array(json.dumps(learnt, ensure_ascii=False, indent=2))}


def learnt(state: Arrays) -> Any:
    """Return what a step learnt from its state."""
    return json.loads(str(state["json"]))
