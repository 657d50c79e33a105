"""The training command with a witness: what every step was given is recorded, and a signal may arrive on the way.

    python -m tests.witnessed_train RECORD [SIGNAL@STEP] -- ARGUMENTS OF experiments.train

RECORD gets one JSON line for every batch that a step was given: its step, the ids of its rows and a hash of each row.
The signal is raised in the process itself, just after the metrics of STEP were written: no clock decides where.
With `stream` in the place of SIGNAL@STEP nothing is trained: the batches of the first steps are recorded, that is all.
"""

import functools
import itertools
import json
import os
import signal
import sys
from pathlib import Path

from experiments import cli, train

STREAM_STEPS = 6


def main() -> None:
    split = sys.argv.index("--")
    record, *orders = sys.argv[1:split]
    sys.argv[1:] = sys.argv[split + 1 :]
    if orders == ["stream"]:
        train.run = lambda cfg, workdir, profile, **how: record_stream(cfg, Path(record))
    else:
        witness = lambda step, batch, state: batch and write_batch(Path(record), batch)  # noqa: E731
        train.run = functools.partial(train.run, witness=witness)
        for order in orders:
            name, _, step = order.partition("@")
            raise_after(signal.Signals[name], int(step))
    cli.main(train.main, doc=train.__doc__, define_flags=train.define_flags)


def write_batch(record: Path, batch) -> None:
    from bigjax.preflight.resume.witness import describe_batch

    with record.open("a") as file:
        file.write(json.dumps(describe_batch(batch)) + "\n")


def record_stream(cfg, record: Path) -> int:
    import jax

    from bigjax import data, sharding

    rows = sharding.local_rows(sharding.make_mesh(cfg.mesh), cfg.train.global_batch_size)
    text = data.build(cfg, rows)
    with text.train.batches(0) as batches:
        for batch in itertools.islice(batches, STREAM_STEPS):
            write_batch(record.with_suffix(f".{jax.process_index()}"), batch)
    return 0


def raise_after(number: signal.Signals, step: int) -> None:
    from bigjax.run.metrics import MetricsWriter

    write = MetricsWriter.write

    def writing(self, done, metrics):
        write(self, done, metrics)
        if done == step and "train/loss" in metrics:
            if number == signal.SIGKILL:
                os.kill(os.getpid(), number)
            signal.raise_signal(number)

    MetricsWriter.write = writing


if __name__ == "__main__":
    main()
