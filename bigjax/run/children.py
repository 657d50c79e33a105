"""Python programs in processes of their own, on virtual CPU devices, alone or as the processes of one run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05

LIMIT_S = 900.0
"""Processes of a run that wait for each other for ever are ended after so long."""

TIMED_OUT = 124
"""The exit status that stands for it, that of timeout(1)."""


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit status, negative for the number of a signal, and what it wrote on stderr."""

    status: int
    said: str

    @property
    def error(self) -> str:
        """The message of its error, as a command prints it, or its last line."""
        found = self.said.rpartition("error: ")[2] if "error: " in self.said else self.said.rstrip().rpartition("\n")[2]
        return found.strip() or f"it ended with status {self.status}"


def run(arguments: Sequence[str], *, processes: int, devices: int, logs: Path) -> Ended:
    """Run `python ARGUMENTS` in so many processes of `devices` CPU devices each, to the end of all of them.

    With more than one, each is given the flags of `experiments.cli.define_distributed_flags`. If one fails the others
    are killed, and how it failed is returned; what they print goes to files in `logs`.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    address = f"127.0.0.1:{free_port()}"
    started: list[tuple[subprocess.Popen, Path]] = []
    try:
        for index in range(processes):
            joined = [f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={index}"]
            command = [sys.executable, *arguments, *(joined if processes > 1 else [])]
            log = logs / f"stderr.{index}"
            with log.open("w") as stderr, (logs / f"stdout.{index}").open("w") as stdout:
                started.append((subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr), log))
        return _wait(started)
    finally:
        for process, _ in started:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(started: list[tuple[subprocess.Popen, Path]]) -> Ended:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for process, log in started:
            if process.poll():
                return Ended(process.returncode, log.read_text())
        if all(process.returncode == 0 for process, _ in started):
            return Ended(0, started[0][1].read_text())
        time.sleep(POLL_S)
    return Ended(TIMED_OUT, f"{started[0][1].read_text()}\nerror: it did not end in {LIMIT_S:.0f} s")


def free_port() -> int:
    """Return a TCP port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
