"""What a preparation writes: records, what was observed of them, states and counts, each whole or not at all."""

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.prepare.counting import bucket, size
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Arrays, Record

WORK = "work"
"""The folder in that of a preparation with what is needed until it is finished."""

SIDE = "_side"
"""The column in which the step `sides` puts the folder that a record goes to."""


def records_path(out: Path, number: int, shard: int) -> Path:
    """Return the file of the records of a shard that a stage hands to the next."""
    return out / WORK / f"{number:02d}" / f"{shard:05d}.jsonl"


def counts_path(out: Path, number: int, shard: int) -> Path:
    """Return the file of the counts of a shard of a stage, which is there when the shard is done."""
    return out / WORK / f"{number:02d}" / f"{shard:05d}.counts.json"


def observed_path(out: Path, number: int, shard: int) -> Path:
    """Return the file of what was observed of a shard of a stage."""
    return out / WORK / f"{number:02d}" / f"{shard:05d}.npz"


def state_path(out: Path, name: str) -> Path:
    """Return the file of the state of a fitted step."""
    return out / WORK / f"{name}.state.npz"


class Writer:
    """Files of a shard under temporary names, which they lose when all is written.

    The records go to the next stage with their places, or, with number None, prepared to the folders of their sides.
    """

    def __init__(self, out: Path, number: int | None, shard: int, text_key: str):
        self.out, self.shard, self.text_key = out, shard, text_key
        self.between = None if number is None else records_path(out, number, shard)
        self.open: dict[Path, Any] = {}
        self.files: dict[str, list[Any]] = {}
        self.lengths: Counter = Counter()

    def __enter__(self) -> "Writer":
        if self.between:
            self._file(self.between)
        return self

    def write(self, place: int, record: Record) -> None:
        """Write a record."""
        if self.between:
            line = json.dumps([place, record], ensure_ascii=False, separators=(",", ":")) + "\n"
            self._file(self.between).write(line.encode())
            return
        side = str(record.get(SIDE, "data"))
        if not re.fullmatch(r"\w+", side) or side in (WORK, "fitted"):
            raise PrepareError(f"{SIDE}={side[:60]!r} is no name of a folder: use letters and digits only")
        name = f"{side}/{self.shard:05d}.jsonl"
        record = {key: value for key, value in record.items() if key != SIDE}
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        self._file(self.out / name).write(line)
        self.lengths[bucket(size(record, self.text_key))] += 1
        counted = self.files.setdefault(name, [0, 0, hashlib.sha256()])
        counted[0] += 1
        counted[1] += len(line)
        counted[2].update(line)

    def finished(self) -> dict[str, list[Any]]:
        """Return the records, bytes and sha256 of each prepared file."""
        return {name: [records, nbytes, digest.hexdigest()] for name, (records, nbytes, digest) in self.files.items()}

    def _file(self, path: Path) -> Any:
        if path not in self.open:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.open[path] = path.with_name(f"{path.name}.tmp").open("wb")
        return self.open[path]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for path, file in self.open.items():
            file.close()
            if kind is None:
                path.with_name(f"{path.name}.tmp").replace(path)


def save(path: Path, arrays: Arrays) -> None:
    """Write arrays."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **dict(arrays))  # pyright: ignore[reportArgumentType]
    temporary.replace(path)


def load(path: Path) -> Arrays:
    """Return arrays that `save` wrote."""
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def write(path: Path, text: str) -> None:
    """Write a text."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def clear(folder: Path) -> None:
    """Remove the records and observations of a stage that the next one has read."""
    for path in folder.iterdir():
        if path.suffix in (".jsonl", ".npz", ".tmp"):
            path.unlink()
