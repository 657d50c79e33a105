"""Points of a sweep as the jobs of a Slurm array, by submitit. A job claims its point, and is requeued if preempted."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigjax.errors import UserError
from bigjax.paths import AnyPath
from bigjax.science.sweeps import Point
from bigjax.science.sweeps.folder import SweepFolder

from .. import extras
from .launch import Launch, outcome_of
from .local import WAIT_S, Command, run_child, train_command


@dataclass
class Job:
    """One point, called on the machine that got the job; it travels there as a pickle.

    Where other launches work on the sweep, a job finds its point claimed, or finished, and leaves it.
    """

    folder: Path
    point: Point
    command: Command = train_command

    def __call__(self) -> str:
        """Train the point, or go on with it; return how it ended."""
        launch = Launch(SweepFolder(self.folder), [self.point], lambda line: print(line, flush=True))
        with launch.next() as claimed:
            for point in claimed:
                run = launch.start(point)
                outcome = outcome_of(run, run_child(self.command(run), run, {}, lambda: launch.stopping))
                launch.end(point, run, outcome)
        return launch.statuses()[self.point].state

    def checkpoint(self) -> Any:
        """Return what submitit queues again when the job is preempted or reaches its time limit: the same once more.

        The trainer ends when this process does; it goes on from its newest checkpoint.
        """
        return extras.load("submitit", "sweep", "--runner=slurm").helpers.DelayedSubmission(self)


def executor(folder: AnyPath, parameters: dict[str, Any], cluster: str = "slurm") -> Any:
    """Return what submits jobs to `slurm`, or starts them on this machine, `local`.

    Args:
      folder: of the sweep.
      parameters: of the jobs, as submitit takes them, e.g. `{"slurm_partition": "gpu", "timeout_min": 60}`.

    Raises:
      UserError: submitit is missing, there is no Slurm, or a parameter is unknown.
    """
    submitit = extras.load("submitit", "sweep", "--runner=slurm")
    try:
        found = submitit.AutoExecutor(folder=Path(str(folder)).absolute() / "jobs" / "%j", cluster=cluster)
        found.update_parameters(name="sweep", **parameters)
    except (RuntimeError, NameError, TypeError) as error:
        raise UserError(f"--runner=slurm: {error}") from error
    return found


def run(launch: Launch, executor: Any, tick: Callable[[], None], command: Command = train_command) -> None:
    """Submit the open points as one job array, and wait until all have ended, or `launch.stopping`.

    Raises:
      UserError: Slurm does not take them.
    """
    points = launch.open()
    if not points:
        return
    try:
        with executor.batch():  # one array
            jobs = [executor.submit(Job(Path(str(launch.folder.path)).absolute(), point, command)) for point in points]
    except (RuntimeError, OSError) as error:
        raise UserError(f"--runner=slurm: {error}") from error
    launch.say(f"{len(jobs)} jobs, {jobs[0].job_id} and on; what they say is in {launch.folder.path}/jobs")
    pause = threading.Event()
    try:
        while not launch.stopping and not all(job.done() for job in jobs):
            tick()
            pause.wait(WAIT_S)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()
    for point, job in zip(points, jobs, strict=True):
        if launch.settled(point) is None and not launch.stopping:
            launch.say(f"{point.name}: {_why(job)}")


def _why(job: Any) -> str:
    error = job.exception()
    return f"its job {job.job_id} ended: {error}" if error else f"{job.result()}, see {job.paths.stdout}"
