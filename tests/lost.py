"""A command whose process gets a signal on the way, once: just after the metrics of a step, so that no clock decides.

    python -m tests.lost SIGNAL@STEP#PROCESS MARKER MODULE ARGUMENTS

Only the process of that index in its group gets it, and only if the file MARKER is not there yet; it is made then.
"""

import os
import runpy
import signal
import sys
from pathlib import Path


def main() -> None:
    order, marker = sys.argv[1], Path(sys.argv[2])
    name, _, rest = order.partition("@")
    step, process = map(int, rest.split("#"))
    if "BIGJAX_HEARTBEAT_FD" in os.environ:  # a member, not the command that watches it
        import jax

        from bigjax.run.metrics import MetricsWriter

        write = MetricsWriter.write

        def writing(self, done, metrics):
            write(self, done, metrics)
            if done == step and "train/loss" in metrics and jax.process_index() == process and not marker.exists():
                marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.Signals[name])

        MetricsWriter.write = writing
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
