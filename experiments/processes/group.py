"""The processes of one run, watched from outside: who is gone or stuck ends the others, by name, and no one hangs.

A command of several processes starts itself again as its members, and watches them. A member tells its phase through a
pipe (`bigjax.run.heartbeat`); members of other machines are seen through small files in the run folder. Imports no JAX.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from bigjax.run import heartbeat

from .peers import Peers, Seen, name_of, who_is_lost

POLL_S = 0.1
TAIL_LINES = 20
"""Lines of a silent member that are shown when it fails."""

ORDERLY = (0, 2, 3, 4, 5, 130, 143)
"""Exit statuses with which a command ends by its own decision: see the command."""


@dataclass
class Member:
    """One process that this command started."""

    process: subprocess.Popen
    pipe: int
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    heard: bytes = b""
    relay: threading.Thread | None = None

    def listen(self) -> bytes | None:
        """Return the newest whole line from the pipe, or None."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.pipe, 65536):
                self.heard += chunk
        *lines, self.heard = self.heard.split(b"\n")
        return lines[-1] if lines else None


class Group:
    """Runs and watches members until all have ended.

    Args:
      commands: the command line of each member.
      timeout_s: after how long without a sign of life a process counts as stuck.
      output: whether to show what members other than the first print, each line with the member's number.
    """

    def __init__(self, commands: Sequence[Sequence[str]], timeout_s: float, output: bool):
        self._commands, self._timeout_s, self._output = commands, timeout_s, output
        self._members: list[Member] = []
        self._stopping = False

    def run(self, max_restarts: int) -> int:
        """Start the members, again if one is lost, at most `max_restarts` times; return the exit status."""
        old = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for restart in range(max_restarts + 1):
                status = self._run_once()
                if status != heartbeat.LOST or self._stopping or restart == max_restarts:
                    return status
                _say(f"restart {restart + 1} of at most {max_restarts}, from the newest checkpoint")
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        raise AssertionError("unreachable")

    def _run_once(self) -> int:
        self._members = [self._start(i, command) for i, command in enumerate(self._commands)]
        peers, lost = Peers(len(self._members)), {}
        try:
            status, lost = self._watch(peers)
        finally:
            for member in self._members:
                member.process.kill()
                member.process.wait()
                os.close(member.pipe)
                if member.relay:
                    member.relay.join()
            peers.close(lost)
        return status

    def _start(self, index: int, command: Sequence[str]) -> Member:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        silent = len(self._commands) > 1 and (index > 0 or self._output)
        process = subprocess.Popen(
            command,
            env=os.environ | {heartbeat.FD: str(writer)},
            pass_fds=(writer,),
            stdout=subprocess.PIPE if silent else None,
            stderr=subprocess.STDOUT if silent else None,
            start_new_session=True,  # a Ctrl-C reaches this command only, which passes it on
        )
        os.close(writer)
        member = Member(process, reader)
        if silent:
            member.relay = threading.Thread(target=self._relay, args=(index, member), daemon=True)
            member.relay.start()
        return member

    def _relay(self, index: int, member: Member) -> None:
        assert member.process.stdout is not None
        with member.process.stdout as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip("\n")
                member.tail.append(text)
                if self._output:
                    _say(f"[{index}] {text}")

    def _forward(self, number: int, frame: Any) -> None:
        self._stopping = True
        for member in self._members:
            if member.process.poll() is None:
                member.process.send_signal(number)

    def _watch(self, peers: Peers) -> tuple[int, dict[int, str]]:
        """Return the exit status once all members have ended or a process of the run is lost, and who is."""
        failed_at: float | None = None
        while True:
            statuses = [member.process.poll() for member in self._members]
            for i, (member, status) in enumerate(zip(self._members, statuses, strict=True)):
                peers.hear(i, member.listen(), None if status in ORDERLY else status)
            peers.look()
            ended = [status for status in statuses if status is not None]
            if len(ended) == len(statuses) and all(status in ORDERLY for status in ended):
                return max(ended), {}
            lost = who_is_lost(peers.seen, self._timeout_s, monotonic())
            if lost:
                self._report(peers.seen, lost)
                return heartbeat.LOST, lost
            if any(ended):  # one that gave up: the others may wait for it in vain
                failed_at = failed_at or monotonic()
                if monotonic() - failed_at > self._timeout_s and all(status in ORDERLY for status in ended):
                    return max(ended), {}
            sleep(POLL_S)

    def _report(self, seen: dict[int, Seen], lost: dict[int, str]) -> None:
        for process, how in lost.items():
            _say(f"error: {name_of(seen, process)} {how} in {seen[process].where}")
        for process in sorted(set(seen) - set(lost)):
            _say(f"  {name_of(seen, process)} was in {seen[process].where}")
        for i in lost:
            if i < len(self._members) > 1 and self._members[i].tail and not self._output:
                _say("\n".join(f"[{i}] {line}" for line in self._members[i].tail))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
