"""The folder of a sweep: one run folder a point, found by identity, and the table of what became of the points.

A point's run is whatever folder inside records its fingerprint, however that is named. `claims/` says who works on
which point. Everything is read from `config.json`, `metrics.jsonl`, `result.json` and `outcome.json` of the runs.
"""

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from bigjax.config import Config, strict
from bigjax.errors import UserError
from bigjax.paths import AnyPath, RemotePath, as_path
from bigjax.run import lease
from bigjax.run.folder import RunFolder
from bigjax.run.json_files import reading, write_json, write_text
from bigjax.run.lock import LOCK
from bigjax.run.rows import parts
from bigjax.science.sweeps import Point

State = Literal["waiting", "running", "cut off", "finished", "diverged", "failed", "pruned"]
"""`cut off`: it can be continued. `diverged`, `failed` and `pruned`: it ended without a result, see `reason`."""

TAIL_BYTES = 8192
"""What is read of the end of a metrics.jsonl to know how far a run is."""

COLUMNS = ("number", "name", "label", "state", "run", "params", "tokens", "loss", "flops", "seed", "diverged")
"""Columns of sweep.csv before those of the fields that vary; `experiments.fit --csv` reads five of them."""


class Status(NamedTuple):
    """What is known of one point's run: where it is, how it ended and why, how far it is and its newest losses."""

    state: State
    run: RunFolder | None = None
    reason: str = ""
    step: int = 0
    loss: float | None = None
    time_s: float = 0.0


class SweepFolder:
    """The folder of a sweep; any number of processes may use it at once."""

    def __init__(self, path: str | AnyPath):
        path = as_path(path)
        self.path = path
        self._known: dict[AnyPath, str | None] = {}

    @property
    def claims(self) -> AnyPath:
        """One `bigjax.run.lease` for every point that is worked on, by fingerprint."""
        return self.path / "claims"

    def create(self) -> None:
        """Make the folder.

        Raises:
          UserError: it cannot be made, or is the folder of a run.
        """
        if RunFolder(self.path).config.is_file():
            raise UserError(f"{self.path} is the folder of a run, not of a sweep: choose another --workdir")
        try:
            self.claims.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={self.path} cannot be made: {error.strerror}") from error

    def runs(self) -> dict[str, RunFolder]:
        """Return the run folders inside by fingerprint; of several the finished one, else the first by name."""
        found: dict[str, RunFolder] = {}
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if not self._known.get(path):  # a folder that has its config keeps it
                self._known[path] = _fingerprint(path / "config.json")
            fingerprint, run = self._known[path], RunFolder(path)
            if fingerprint and (fingerprint not in found or (run.complete and not found[fingerprint].complete)):
                found[fingerprint] = run
        return found

    def check_text(self, points: Sequence[Point]) -> None:
        """Make sure that runs in here whose config is that of a point are of the text that its files hold now.

        Raises:
          UserError: one is of another, naming the files and both hashes.
        """
        runs = self.runs()
        new = {strict.fingerprint(point.cfg): point for point in points if point.fingerprint not in runs}
        for run in runs.values() if new else ():
            if point := new.get(strict.fingerprint(run.load_config())):
                run.check(point.cfg)

    def place(self, point: Point) -> RunFolder:
        """Return the run folder of a point, ready to be trained in: its config is that of the point, plumbing too."""
        run = self.runs().get(point.fingerprint, RunFolder(self.path / point.folder))
        run.write_config(point.cfg)
        return run

    @contextlib.contextmanager
    def claimed(self, points: Sequence[Point]) -> Iterator[list[Point]]:
        """Claim points for this process; the ones that nobody else works on are had, and renewed, until the end."""
        owned = {}
        for point in points:
            with contextlib.suppress(lease.Taken):
                owned[point] = lease.take(self._claim(point))[0]
        try:
            with lease.renewed([self._claim(point) for point in owned]):
                yield [point for point in owned if not self._is_trained(point)]
        finally:
            for point, owner in owned.items():
                lease.release(self._claim(point), owner)

    def status(self, point: Point, runs: dict[str, RunFolder]) -> Status:
        """Return what is known of a point, given what `runs()` returned."""
        run = runs.get(point.fingerprint)
        if run is None:
            return Status("running" if lease.holder(self._claim(point)) else "waiting")
        ended = self.ended(point, run)
        if ended.state != "finished" and (lease.holder(self._claim(point)) or lease.holder(run.path / LOCK)):
            return ended._replace(state="running", reason="")
        return ended

    def ended(self, point: Point, run: RunFolder) -> Status:
        """Return what is known of a point on which nobody works now."""
        if run.complete:
            with reading(run.result):
                result = read_json(run.result)
                return Status("finished", run, "", point.cfg.train.steps, _loss(result), result.get("wall_s") or 0.0)
        row = last_row(run.metrics)
        progress = (row.get("step", 0), row.get("train/loss"), row.get("time_s", 0.0))
        if run.outcome.is_file():
            with reading(run.outcome):
                outcome = read_json(run.outcome)
                return Status(outcome["state"], run, outcome["reason"], *progress)
        return Status("cut off" if run.environment.is_file() else "waiting", run, "", *progress)

    def table(self, points: Sequence[Point]) -> list[dict[str, Any]]:
        """Return a row for every point, the same however often the sweep was cut short: no times, no machines."""
        runs = self.runs()
        paths = list(dict.fromkeys(path for point in points for path in point.values))
        return [_row(point, self.status(point, runs), paths) for point in points]

    def write_table(self, points: Sequence[Point], source: str) -> list[dict[str, Any]]:
        """Write `sweep.json` and `sweep.csv`, and return the rows."""
        rows = self.table(points)
        self._write("sweep.json", lambda path: write_json(path, {"config": source, "points": rows}))
        paths = list(dict.fromkeys(path for row in rows for path in row["values"]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, *paths])
        for row in rows:
            cells = [row[name] for name in COLUMNS] + [row["values"].get(path) for path in paths]
            writer.writerow(["" if cell is None else cell for cell in cells])
        self._write("sweep.csv", lambda path: write_text(path, text.getvalue()))
        return rows

    def _write(self, name: str, write: Callable[[AnyPath], None]) -> None:
        if isinstance(self.path, RemotePath):
            write(self.path / name)
            return
        mine = self.path / f"{name}.{os.getpid()}"  # other launches write it, too
        write(mine)
        mine.replace(self.path / name)

    def _claim(self, point: Point) -> AnyPath:
        return self.claims / point.fingerprint

    def _is_trained(self, point: Point) -> bool:
        """Whether a trainer that this sweep did not start, or that outlives its launch, has the run."""
        run = self.runs().get(point.fingerprint)
        return run is not None and lease.holder(run.path / LOCK) is not None


def read_json(path: str | AnyPath) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
      UserError: it cannot be read.
    """
    path = as_path(path)
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def last_row(path: str | AnyPath) -> dict[str, Any]:
    """Return the metrics of the last training step in a `metrics.jsonl`, or an empty dict."""
    path = as_path(path)
    try:
        with parts(path)[-1].open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError):  # the first may be half a line
            if "train/loss" in (row := json.loads(line)):
                return {name: value if name == "step" else float(value) for name, value in row.items()}
    return {}


def _fingerprint(path: AnyPath) -> str | None:
    try:
        return json.loads(path.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _row(point: Point, status: Status, paths: Sequence[str]) -> dict[str, Any]:
    ended = status.run is not None and status.state == "finished"
    result = read_json(status.run.result) if ended and status.run else {}
    loss = _loss(result)
    values = {path: _value(point.cfg, path) for path in paths}
    worse_than_guessing = loss is not None and not loss < math.log(point.cfg.model.vocab_size)
    return {
        "number": point.number,
        "name": point.name,
        "label": point.label,
        "fingerprint": point.fingerprint,
        "state": status.state,
        "reason": status.reason,
        "run": status.run.path.name if status.run else None,
        "values": values,
        "seed": point.cfg.train.seed,
        "steps": point.cfg.train.steps,
        "tokens": point.cfg.train.steps * point.cfg.train.global_batch_size * point.cfg.data.seq_len,
        "params": result.get("params_total"),
        "flops": result.get("flops"),
        "loss": loss,
        "loss_of": None if loss is None else ("training" if result.get("eval_loss") is None else "held out"),
        "train_loss": _number(result.get("train_loss")),
        "diverged": status.state == "diverged" or worse_than_guessing,
    }


def _loss(result: dict[str, Any]) -> float | None:
    held_out = _number(result.get("eval_loss"))
    return _number(result.get("train_loss")) if held_out is None else held_out


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _value(cfg: Config, path: str) -> Any:
    for name in path.split("."):
        cfg = getattr(cfg, name)
    return list(cfg) if isinstance(cfg, tuple) else cfg
