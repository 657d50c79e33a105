"""What is known of every process of a run, here and on other machines, and who of them is lost."""

import contextlib
import json
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from bigjax.paths import is_remote
from bigjax.run.heartbeat import INTERVAL_S
from bigjax.run.json_files import dumps

FOLDER = "processes.tmp"
"""Where in the run folder processes of other machines are seen; a folder of a name that a new run may find."""

AFTERMATH = (1, -signal.SIGABRT)
"""How a process ends, too, because another one is gone: by an exception or by the abort of JAX's own watchdog."""


@dataclass
class Seen:
    """A process as last seen: what it told, when it last told anything, since when it is where it is, how it ended."""

    told: dict[str, Any]
    at: float
    since: float
    status: int | None = None
    ended_at: float | None = None

    @property
    def where(self) -> str:
        """Its phase in words."""
        step = f" (step {self.told['step']})" if self.told["step"] else ""
        return f"phase {self.told['phase']}{step}"


def name_of(seen: dict[int, Seen], process: int) -> str:
    """Return `process 1 of 2 (host, pid)`."""
    told = seen[process].told
    return f"process {process} of {told['processes']} ({told['host']}, pid {told['pid']})"


def who_is_lost(seen: dict[int, Seen], timeout_s: float, now: float) -> dict[int, str]:
    """Return the processes that keep the others from going on, and how each was lost; those lost as a consequence only
    if nothing else explains it."""
    lost, consequences = {}, {}
    for process, one in seen.items():
        if one.status is not None:
            (consequences if one.status in AFTERMATH else lost)[process] = _how(one.status)
        elif now - one.at > timeout_s:
            lost[process] = f"gave no sign of life for {timeout_s:g} s"
        elif one.told["phase"] == "data" and one.told["step"] and now - one.since > timeout_s:
            lost[process] = f"has waited for a batch for {timeout_s:g} s"
    if lost or not consequences:
        return lost
    first = min(seen[process].ended_at or now for process in consequences)
    alive = [one.at > first + 2 * INTERVAL_S for one in seen.values() if one.status is None]
    return consequences if all(alive) else {}


def _how(status: int) -> str:
    return f"ended with status {status}" if status > 0 else f"was ended by {signal.Signals(-status).name}"


class Peers:
    """Keeps `seen`, process -> `Seen`, for the `local` members of this command and, if there are others, for those.

    Another process counts from the moment it is seen to move: what an earlier session left behind does not.
    """

    def __init__(self, local: int):
        self._local = local
        self._ids: dict[int, int] = {}
        self._first: dict[int, Any] = {}
        self._folder: Path | None = None
        self.seen: dict[int, Seen] = {}

    def hear(self, member: int, line: bytes | None, status: int | None) -> None:
        """Note what a member told, and the status it ended with if that was not an orderly one."""
        if line is not None:
            told = json.loads(line)
            self._ids[member] = told["process"]
            self._update(told, None)
        elif member not in self._ids and status is not None:
            # It never said a word.
            self._ids[member] = member
            told = {"process": member, "processes": self._local, "host": "here", "pid": 0, "phase": "start", "step": 0}
            self._update(told, None)
        if status is not None and self.seen[self._ids[member]].status is None:
            one = self.seen[self._ids[member]]
            one.status, one.ended_at = status, monotonic()
            self._publish(one)
        elif line is not None:
            self._publish(self.seen[self._ids[member]])

    def look(self) -> None:
        """Look at the processes of other machines."""
        if self._folder is None:
            return
        paths = list(self._folder.glob("*.json"))
        gone = set(self.seen) - set(self._ids.values()) - {int(path.stem) for path in paths}
        for process in gone:  # it ended well
            del self.seen[process]
        for path in paths:
            with contextlib.suppress(OSError, ValueError):  # gone, or being replaced on a slow file system
                told = json.loads(path.read_text())
                process = told["process"]
                if process in self._ids.values():
                    continue
                mark = (told["beat"], told["pid"], told["host"])
                if self._first.setdefault(process, mark) != mark or process in self.seen:
                    self._update(told, told["status"])

    def close(self, lost: Collection[int]) -> None:
        """Take the files of the members that ended well away; those of the lost stay, for the others to find out."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            for process in self._ids.values():
                if self.seen[process].status is None and process not in lost:
                    (self._folder / f"{process}.json").unlink(missing_ok=True)
            self._folder.rmdir()
            self._folder.parent.rmdir()  # of a run that never began

    def _update(self, told: dict[str, Any], status: int | None) -> None:
        now, before = monotonic(), self.seen.get(told["process"])
        if before is None:
            self.seen[told["process"]] = Seen(told, now, now, status, now if status is not None else None)
            return
        if before.told.get("beat") != told.get("beat"):
            before.at = now
        if (before.told["phase"], before.told["step"]) != (told["phase"], told["step"]):
            before.since = now
        before.told = told
        if status is not None and before.status is None:
            before.status, before.ended_at = status, now

    def _publish(self, one: Seen) -> None:
        """Let the commands of other machines see a member, if there are any."""
        if one.told["processes"] == self._local or "workdir" not in one.told:
            return
        if is_remote(one.told["workdir"]):  # a sign of life twice a second is too much for an object store
            return
        self._folder = Path(one.told["workdir"], FOLDER)
        with contextlib.suppress(OSError):  # then the others see nothing of it, and take it for stuck
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f"{one.told['process']}.tmp"
            temporary.write_text(dumps(one.told | {"status": one.status}))
            temporary.replace(self._folder / f"{one.told['process']}.json")
