"""Points of a sweep one after the other in this process."""

import threading
import traceback

from bigjax.errors import UserError
from bigjax.run import runtime
from bigjax.run.folder import RunFolder
from bigjax.science.sweeps import Point
from bigjax.train.guard import Diverged

from .. import train
from .launch import Launch, Outcome, outcome_of
from .local import WAIT_S, Ended


def run(launch: Launch) -> None:
    """Train the points of a launch until each has ended, or a signal stops one."""
    runtime.configure_jax()
    pause = threading.Event()
    while not launch.stopping:
        with launch.next() as claimed:
            for point in claimed:
                folder = launch.start(point)
                outcome = _train(point, folder)
                if outcome.state == "stopped":  # the trainer took the signal
                    launch.stopping, launch.stopped_by = True, outcome.exit_status
                launch.end(point, folder, outcome)
        if not claimed:
            if not launch.open():
                return
            pause.wait(WAIT_S)


def _train(point: Point, folder: RunFolder) -> Outcome:
    try:
        return outcome_of(folder, Ended(train.run(point.cfg, folder.path), ""))
    except Diverged as error:
        return Outcome("diverged", error.exit_code, str(error))
    except UserError as error:
        return Outcome("failed", error.exit_code, str(error))
    except Exception as error:  # a bug that one point meets is no reason to give up the others
        folder.output.write_text(traceback.format_exc())
        return Outcome("failed", 1, f"{type(error).__name__}: {error}")
