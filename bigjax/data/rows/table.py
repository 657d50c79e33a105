"""Rows of numbers: the features of each record of a table, and a target, each in units of its own spread.

Legend: B batch, N records, F features.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.sources.opening import SplitSource
from bigjax.errors import brief, listed
from bigjax.paths import AnyPath, as_path

FILE = "scaler.json"
"""What a scaler is called in a run folder."""


@dataclass(frozen=True)
class Scaler:
    """Takes the mean of what was trained on from each column, and divides by its standard deviation.

    Attributes:
      features, target: the columns. means, stds: of the features, and last of the target; a column that never changes
        has the standard deviation 1.
    """

    features: tuple[str, ...]
    target: str
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @classmethod
    def fit(cls, features: Sequence[str], target: str, values: np.ndarray) -> "Scaler":
        """Measure values (N, F + 1) in float64, the target last."""
        stds = values.std(axis=0)
        return cls(
            tuple(features), target, tuple(values.mean(axis=0).tolist()), tuple(np.where(stds > 0, stds, 1.0).tolist())
        )

    @cached_property
    def digest(self) -> str:
        """The sha256 of columns and statistics."""
        return hashlib.sha256(json.dumps(vars(self) | {"digest": None}, sort_keys=True).encode()).hexdigest()

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Return values (N, F + 1) in units of their spread."""
        return (values - np.array(self.means)) / np.array(self.stds)

    def in_units(self, targets: np.ndarray) -> np.ndarray:
        """Return scaled targets in the units of the data, float64."""
        return targets.astype(np.float64) * self.stds[-1] + self.means[-1]

    def save(self, folder: str | Path) -> None:
        """Write `scaler.json` into a folder."""
        kept = {name: getattr(self, name) for name in ("features", "target", "means", "stds")}
        (Path(folder) / FILE).write_text(json.dumps(kept, indent=2))

    @classmethod
    def load(cls, folder: str | AnyPath) -> "Scaler":
        """Read what `save` wrote.

        Raises:
          DataError: there is none, or it is damaged.
        """
        try:
            kept = json.loads((as_path(folder) / FILE).read_text())
            return cls(tuple(kept["features"]), kept["target"], tuple(kept["means"]), tuple(kept["stds"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"there is no scaler of a table in {folder}: {brief(str(error))}") from error


def numbers(sides: Iterable[SplitSource], features: Sequence[str], target: str) -> np.ndarray:
    """Return the numbers (N, F + 1) float64 of the records of some sides, the target last.

    Raises:
      DataError: a record lacks a column, or its value is no finite number.
    """
    found = []
    for side in sides:
        for name, (record,) in side.documents():
            found.append([_number(record, column, f"{side.source.spec!r}, {name}") for column in (*features, target)])
    return np.array(found, np.float64).reshape(len(found), len(features) + 1)


def _number(record: Mapping[str, Any], column: str, place: str) -> float:
    if column not in record:
        raise DataError(f"{place}: no column {column!r}, only {listed(map(repr, record))}")
    try:
        return finite(record[column], column)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def finite(value: Any, column: str) -> float:
    """Return a value of a column, or what a text spells, as a number.

    Raises:
      DataError: it is no finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{column!r} is {brief(str(value))}, no finite number")
    return number


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of scaled features and a scaled target, one for each record.

    Attributes:
      values: (N, F + 1) float32, the target last.
    """

    spec: str
    values: np.ndarray
    scaler: Scaler | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.values.tobytes()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        return {"documents": len(self.values), "tokens": len(self.values), "bytes": self.values.nbytes}

    @property
    def identity(self) -> dict[str, Any]:
        return {"scaler": self.scaler.digest if self.scaler else None}

    def __len__(self) -> int:
        return len(self.values)

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return `inputs` `(B, F)`, and `targets` and `weights` `(B,)`, all float32."""
        del ids
        real = rows < len(self)
        picked = self.values[np.minimum(rows, len(self) - 1)] * real[:, None]
        return {"inputs": picked[:, :-1], "targets": picked[:, -1], "weights": real.astype(np.float32)}
