"""One launch of a sweep: which points are still to be run, who runs which, and how each ended. Imports no JAX."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from bigjax.run import lease
from bigjax.run.children import Ended
from bigjax.run.folder import RunFolder
from bigjax.run.json_files import write_json
from bigjax.run.lock import LOCK
from bigjax.science.sweeps import Point
from bigjax.science.sweeps.folder import Status, SweepFolder

MAX_STARTS = 5
"""How often one launch starts a point whose trainer is killed, before the point counts as failed."""

WRITE_S = 5.0
"""Time between two writings of the table."""

SETTLED = ("finished", "diverged", "pruned")


@dataclass(frozen=True)
class Outcome:
    """How one start of a point ended. `killed` may be started again at once, `stopped` by the next launch."""

    state: Literal["finished", "diverged", "failed", "pruned", "stopped", "killed"]
    exit_status: int = 0
    reason: str = ""


def outcome_of(run: RunFolder, ended: Ended) -> Outcome:
    """Return what the exit status of a trainer means; see `experiments.train`."""
    if ended.status == 0 and run.complete:
        return Outcome("finished")
    if ended.status == 3:
        return Outcome("diverged", 3, ended.error)
    if ended.status in (130, 143):
        return Outcome("stopped", ended.status, f"its process was told to stop by signal {ended.status - 128}")
    if ended.status < 0:
        return Outcome("killed", ended.status, f"its process was ended by signal {-ended.status}")
    if ended.status == 2 and lease.holder(run.path / LOCK):
        return Outcome("killed", 2, "another trainer has its folder")
    return Outcome("failed", ended.status, ended.error)


class Launch:
    """Hands out the points of a sweep to whoever trains them, in this process or, by claims, in others.

    What has finished is left alone, and so are points that diverged unless `retry`; a point that failed before this
    launch is tried again, one that failed since is not.

    Args:
      say: told a sentence when a point ends.
    """

    def __init__(
        self,
        folder: SweepFolder,
        points: Sequence[Point],
        say: Callable[[str], None] = print,
        *,
        retry: bool = False,
        max_starts: int = MAX_STARTS,
    ):
        self.folder, self.points, self.say = folder, list(points), say
        self._retry, self._max_starts = retry, max_starts
        self.stopping, self.stopped_by = False, 0
        self._mutex, self._starts = threading.RLock(), Counter[str]()
        self._mine: set[Point] = set()
        folder.create()
        folder.check_text(points)
        runs = folder.runs()
        self._before = {point: _written(runs.get(point.fingerprint)) for point in points}
        self._settled: dict[Point, Status] = {}

    def statuses(self) -> dict[Point, Status]:
        """Return what is known of every point."""
        with self._mutex:
            runs = self.folder.runs()
            found = {}
            for point in self.points:
                found[point] = self._settled.get(point) or self.folder.status(point, runs)
                if self._is_settled(point, found[point]):
                    self._settled[point] = found[point]
            return found

    def add(self, point: Point) -> Point:
        """Add a point, if no other is the same run; return the one that it is."""
        with self._mutex:
            for known in self.points:
                if known.fingerprint == point.fingerprint:
                    return known
            self.folder.check_text([point])
            self._before[point] = _written(self.folder.runs().get(point.fingerprint))
            self.points.append(point)
            return point

    def settled(self, point: Point) -> Status | None:
        """Return how a point ended, None as long as it has not."""
        self.statuses()
        return self._settled.get(point)

    def open(self) -> list[Point]:
        """Return the points without a result, those that others work on included."""
        self.statuses()
        return [point for point in self.points if point not in self._settled]

    @contextlib.contextmanager
    def next(self, choose: Callable[[list[Point]], list[Point]] = lambda free: free[:1]) -> Iterator[list[Point]]:
        """Claim the points that `choose` takes of the open ones that nobody works on; perhaps fewer, or none."""
        with self._mutex:
            known = self.statuses()
            free = [p for p in self.points if p not in self._settled and p not in self._mine]
            free = [point for point in free if known[point].state != "running"]
            chosen = choose(free) if free and not self.stopping else []
            self._mine.update(chosen)
        try:
            with self.folder.claimed(chosen) as claimed:
                # Another launch may have ended one between the look and the claim.
                still = set(self.open())
                yield [point for point in claimed if point in still]
        finally:
            with self._mutex:
                self._mine.difference_update(chosen)

    def start(self, point: Point) -> RunFolder:
        """Return the run folder of a claimed point, ready for its trainer."""
        with self._mutex:
            self._starts[point.fingerprint] += 1
            return self.folder.place(point)

    def end(self, point: Point, run: RunFolder, outcome: Outcome) -> None:
        """Note how a claimed point ended."""
        again = outcome.state in ("killed", "stopped") and not self.stopping
        if again and self._starts[point.fingerprint] >= self._max_starts:
            outcome = Outcome("failed", outcome.exit_status, f"{outcome.reason}, {self._max_starts} times")
        if outcome.state == "finished":
            run.outcome.unlink(missing_ok=True)
        elif outcome.state in ("diverged", "failed", "pruned"):
            write_json(run.outcome, asdict(outcome))
        status = self.folder.ended(point, run)
        with self._mutex:
            if status.state in (*SETTLED, "failed"):
                self._settled[point] = status
            loss = f", loss {status.loss:.4f}" if status.loss is not None else ""
            why = f": {outcome.reason}" if outcome.reason else ""
            self.say(f"{len(self._settled)}/{len(self.points)}  {point.name}: {outcome.state}{loss}{why}")

    def _is_settled(self, point: Point, status: Status) -> bool:
        if status.state == "finished":
            return True
        if status.state in SETTLED and not self._retry:
            return True
        return status.state in (*SETTLED, "failed") and _written(status.run) != self._before[point]


def _written(run: RunFolder | None) -> int | None:
    """Return when the outcome of a run was written, None if there is none."""
    try:
        return run.outcome.stat().st_mtime_ns if run else None
    except FileNotFoundError:
        return None
