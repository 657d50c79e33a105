"""The rows of a run, `metrics.jsonl`: on a disk a file that grows, in an object store objects that are written anew.

No object can be appended to. The newest one holds the newest rows and is written again, whole, every `FLUSH_S` at most;
once it has `OBJECT_BYTES` the next one begins: `metrics.jsonl`, `metrics.jsonl.1`, `metrics.jsonl.2` and so on. A kill
loses what came after the newest write, but never a row of a step that a checkpoint has: a checkpoint is complete only
once the rows before it are stored, and what came later comes again when the run continues from there.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigjax.paths import AnyPath, RemotePath, StoreError, as_path
from bigjax.run.json_files import dumps, reading, write_text

FLUSH_S = 10.0
"""Seconds between two writes of the newest object, so six requests a minute."""

OBJECT_BYTES = 2**20
"""An object with as many bytes is not written again."""


def read_rows(path: str | AnyPath) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `metrics.jsonl` in order, with the strings for NaN and infinities turned back into floats.

    A last line that a crash cut short is left out.
    """
    for part in parts(path):
        yield from _rows_of(part)


def parts(path: str | AnyPath) -> list[AnyPath]:
    """Return the files that hold the rows of a `metrics.jsonl`, in order; the first one whether it is there or not."""
    path = as_path(path)
    if not isinstance(path, RemotePath):
        return [path]
    numbers = (beside.suffix[1:] for beside in path.parent.glob(f"{path.name}.*"))
    later = sorted(int(number) for number in numbers if number.isdecimal())
    return [path, *(path.with_name(f"{path.name}.{number}") for number in later)]


def truncate_after(path: str | AnyPath, step: int) -> float:
    """Drop the rows of later steps than `step`, atomically, and return the `time_s` of the last row kept, or 0."""
    path = as_path(path)
    if not path.is_file():
        return 0.0
    time_s, rest = 0.0, parts(path)
    while rest:  # rows are in order, but for those of one step
        rows = list(_rows_of(rest[0]))
        kept = [row for row in rows if row["step"] <= step]
        time_s = kept[-1]["time_s"] if kept else time_s
        if len(kept) < len(rows) or len(rest) == 1:
            break
        rest = rest[1:]
    for part in reversed(rest[1:]):  # the last one first: what a kill leaves is a beginning of the rows
        part.unlink(missing_ok=True)
    write_text(rest[0], "".join(dumps(row) + "\n" for row in kept))
    return time_s


def _rows_of(part: AnyPath) -> Iterator[dict[str, Any]]:
    with reading(part), part.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                row = json.loads(line)
                yield {name: float(value) if name != "step" else value for name, value in row.items()}


class RowFile:
    """Rows appended to a file on the disk."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: str) -> None:
        """Append a line, which is on its way to the disk when this returns."""
        self._file.write(line)
        self._file.flush()

    def stored(self) -> None:
        """Return once every line is where a kill of this process does not reach it: at once."""

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


class RowObjects:
    """Rows appended to objects by a thread of its own, so that no step waits for a store."""

    def __init__(self, path: RemotePath):
        last = parts(path)[-1]
        self._path, self._number = path, 0 if last == path else int(last.suffix[1:])
        self._lines = last.read_bytes().splitlines(keepends=True) if last.is_file() else []
        self._stored = len(self._lines)
        self._changing, self._writing = threading.Lock(), threading.Lock()
        self._done, self._told = threading.Event(), False
        self._thread = threading.Thread(target=self._flush, name="rows", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Append a line, which is stored within `FLUSH_S` if the store answers."""
        with self._changing:
            self._lines.append(line.encode())

    def stored(self) -> None:
        """Return once every line is stored.

        Raises:
            StoreError: the store refuses, or has not answered for long.
        """
        with self._writing:
            with self._changing:
                count, data = len(self._lines), b"".join(self._lines)
            if count == self._stored:
                return
            self._part().write_bytes(data)
            self._stored = count
            if len(data) >= OBJECT_BYTES:
                with self._changing:
                    self._lines, self._stored, self._number = self._lines[count:], 0, self._number + 1

    def close(self) -> None:
        """Store what is left.

        Raises:
            StoreError: as `stored`.
        """
        self._done.set()
        self.stored()

    def _part(self) -> RemotePath:
        return self._path.with_name(f"{self._path.name}.{self._number}") if self._number else self._path

    def _flush(self) -> None:
        while not self._done.wait(FLUSH_S):
            try:
                self.stored()
            except StoreError as error:  # the rows are kept, and `close` says so if they never could be
                if not self._told:
                    self._told = True
                    with contextlib.suppress(OSError):
                        print(f"warning: {error}; the metrics wait", file=sys.stderr, flush=True)


def open_rows(path: AnyPath) -> RowFile | RowObjects:
    """Return what appends rows to a `metrics.jsonl`."""
    return RowObjects(path) if isinstance(path, RemotePath) else RowFile(path)
