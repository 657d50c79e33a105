"""What every step of a run was given and what came of it, as JSON that two runs can be compared by, bit for bit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bigjax import params
from bigjax.data import Batch


def describe_batch(batch: Batch) -> dict[str, Any]:
    """Return the step of a batch, and for each of this process's rows its id and a hash of its arrays."""
    arrays = [batch.arrays[name] for name in sorted(batch.arrays)]
    rows = [_hash(*(array[row] for array in arrays)) for row in range(len(batch.ids))]
    return {"step": batch.step, "ids": batch.ids.tolist(), "rows": rows}


def describe_state(state: Any) -> dict[str, Any]:
    """Return for every array of a pytree, by path, its value if it is one integer, else dtype, shape and a hash.

    Of several processes all call this at the same time: each array is brought together from all of them.
    """
    return {name: _describe(_whole(x)) for name, x in params.names(state).items()}


class Witness:
    """Writes a line of JSON for the state that a run starts from, and one for every step; `train.run` takes it.

    A line holds `step` (updates made), `state` as in `describe_state` and, but for the first, `batch` as in
    `describe_batch`. Every process writes a file of its own.
    """

    def __init__(self, path: Path, then: Callable[[int], None] = lambda step: None):
        """Write to `path`; call `then(step)` after every line."""
        self._path = path
        self._then = then

    def __call__(self, step: int, batch: Batch | None, state: Any) -> None:
        """Write the line of a step."""
        line = {"step": step, "state": describe_state(state)}
        if batch is not None:
            line["batch"] = describe_batch(batch)
        write_line(self._path, line)
        self._then(step)


def write_line(path: Path, value: dict[str, Any]) -> None:
    """Append one line of JSON to the file of this process, `path` with its number at the end."""
    with path.with_name(f"{path.name}.{jax.process_index()}").open("a") as file:
        file.write(json.dumps(value) + "\n")


def read_lines(path: Path) -> list[list[dict[str, Any]]]:
    """Return the lines of every process, in the order of the processes; a last line cut short by a kill is left out."""
    files = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: int(file.suffix[1:]))
    return [
        [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for file in files
    ]


def _whole(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _describe(x: np.ndarray) -> Any:
    if x.ndim == 0 and np.issubdtype(x.dtype, np.integer):
        return x.item()
    return f"{x.dtype}{list(x.shape)} {_hash(x)}"


def _hash(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]
