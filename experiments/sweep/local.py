"""Points of a sweep in processes of their own, several at a time, each on its share of the cores. Imports no JAX."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from bigjax.paths import RemotePath, on_disk
from bigjax.run import heartbeat
from bigjax.run.children import Ended
from bigjax.run.folder import RunFolder

from ..processes.group import Member
from .launch import Launch, outcome_of

POLL_S = 0.1
WAIT_S = 0.5
"""Time between two looks at the points of other launches."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

TRAIN = f"{__name__.removesuffix('sweep.local')}train"
"""The module that trains, of this package under the name that it goes by here."""

Command = Callable[[RunFolder], Sequence[str]]


def train_command(run: RunFolder) -> list[str]:
    """Return the command that trains, or goes on with, what the config in a run folder says."""
    return [sys.executable, "-m", TRAIN, f"--config={run.path}", f"--workdir={run.path}"]


def run(launch: Launch, processes: int, tick: Callable[[], None], command: Command = train_command) -> None:
    """Train the points of a launch, so many at a time, until each has ended or `launch.stopping`.

    A process ends when this one is killed, since it tells its heartbeat to nobody then. `tick` is called now and then.
    """

    def work(environment: dict[str, str]) -> None:
        pause = threading.Event()
        while not launch.stopping:
            with launch.next() as claimed:
                for point in claimed:
                    folder = launch.start(point)
                    ended = run_child(command(folder), folder, environment, lambda: launch.stopping)
                    launch.end(point, folder, outcome_of(folder, ended))
            if not claimed:
                if not launch.open():
                    return
                pause.wait(WAIT_S)

    in_slots(work, processes, launch, tick)


def in_slots(work: Callable[[dict[str, str]], None], processes: int, launch: Launch, tick: Callable[[], None]) -> None:
    """Call `work` in so many threads, each on its share of the cores, with the environment that says so.

    An error in one of them stops the launch and is raised.
    """
    failures: list[BaseException] = []

    def guarded(slot: int) -> None:
        try:
            work(pin_threads(slot, processes))
        except BaseException as error:
            failures.append(error)
            launch.stopping = True

    slots = [threading.Thread(target=guarded, args=(i,), name=f"slot {i}") for i in range(processes)]
    for slot in slots:
        slot.start()
    try:
        while any(slot.is_alive() for slot in slots):
            tick()
            for slot in slots:
                slot.join(POLL_S / processes)
    finally:
        launch.stopping = launch.stopping or any(slot.is_alive() for slot in slots)
        for slot in slots:
            slot.join()
    if failures:
        raise failures[0]


def run_child(
    command: Sequence[str], run: RunFolder, environment: dict[str, str], stopping: Callable[[], bool]
) -> Ended:
    """Run a trainer, what it prints appended to the run's `output.log`; end it by SIGTERM once `stopping()`."""
    with on_disk(run.output) as output:
        if isinstance(run.output, RemotePath) and run.output.is_file():
            output.write_bytes(run.output.read_bytes())
        return _run_child(command, output, environment, stopping)


def _run_child(
    command: Sequence[str], output: Path, environment: dict[str, str], stopping: Callable[[], bool]
) -> Ended:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with output.open("ab") as log:
        start = log.tell()
        try:
            process = subprocess.Popen(
                command,
                env=os.environ | environment | {heartbeat.FD: str(writer)},
                pass_fds=(writer,),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches the launcher only, which passes it on
            )
        finally:
            os.close(writer)
    member, told = Member(process, reader), False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
                break
            member.listen()  # an unread pipe would fill up
            if stopping() and not told:
                process.terminate()
                told = True
    finally:
        if process.poll() is None:  # an error here is not to leave it behind
            process.kill()
            process.wait()
        os.close(reader)
    return Ended(process.returncode, _tail(output, start))


def pin_threads(slot: int, processes: int) -> dict[str, str]:
    """Give the calling thread, and what it starts, its share of the cores; return the environment that says so too."""
    if not hasattr(os, "sched_setaffinity"):
        return {}
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // processes)
    mine = {cores[i % len(cores)] for i in range(slot * share, (slot + 1) * share)}
    os.sched_setaffinity(0, mine)
    return dict.fromkeys(THREAD_VARIABLES, str(len(mine)))


def _tail(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - 8192))
        return file.read().decode(errors="replace")
