"""The witnessed launcher with a bug that shows in a resumed run: `python -m tests.planted_train BUG --order=FILE`."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.checkpoint.digests import complete_steps
from bigjax.checkpoint.saving import Checkpoints
from bigjax.data import TrainStream
from bigjax.run.metrics import MetricsWriter
from bigjax.train import step
from experiments import cli
from experiments.check import witnessed_train


def change_restored(change: Callable[[Any], Any]) -> None:
    """Let the launcher get another state than the one that was saved."""
    restore = Checkpoints.restore

    def planted(self, *arguments):
        found = restore(self, *arguments)
        return dataclasses.replace(found, state=change(found.state))

    Checkpoints.restore = planted


def restart(kind: Any) -> None:
    def zeros(x):
        return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, kind) else x

    change_restored(lambda state: state.replace(opt_state=jax.tree.map(zeros, state.opt_state)))


def shift_data(start: int) -> None:
    batches = TrainStream.batches
    TrainStream.batches = lambda self, first: batches(self, first + 1)


def restart_random_numbers(start: int) -> None:
    make = step.make_train_step

    def planted(*arguments):
        take = make(*arguments)

        def take_with_another_key(state, batch):
            after, metrics = take(state.replace(step=state.step - start), batch)
            # Only the key is another: the learning rate that is reported follows the updates made.
            return after.replace(step=state.step + 1), metrics | {"updates": metrics["updates"] + start}

        return take_with_another_key

    step.make_train_step = planted


def count_from_resumption(start: int) -> None:
    state = TrainStream.state
    TrainStream.state = lambda self, done: state(self, done - start) | {"next_step": done}


def scale_losses(start: int) -> None:
    write = MetricsWriter.write

    def planted(self, done, metrics):
        write(self, done, {name: value * (1.001 if name == "train/loss" else 1) for name, value in metrics.items()})

    MetricsWriter.write = planted


def start_afresh(start: int) -> None:
    Checkpoints.resumable = lambda self: False


BUGS: dict[str, Callable[[int], None]] = {
    "optimizer": lambda start: restart(jnp.floating),
    "schedule": lambda start: restart(jnp.integer),
    "ema": lambda start: change_restored(lambda state: state.replace(ema=jax.tree.map(jnp.copy, state.params))),
    "data": shift_data,
    "random numbers": restart_random_numbers,
    "counters": count_from_resumption,
    "loss": scale_losses,
    "afresh": start_afresh,
}
"""What is wrong -> a function of the step that the run is resumed after."""


def main() -> None:
    bug, *arguments = sys.argv[1:]
    order = json.loads(Path(arguments[0].partition("=")[2]).read_text())
    BUGS[bug](max(complete_steps(Path(order["workdir"], "checkpoints"))))
    cli.main(
        witnessed_train.main,
        doc=None,
        define_flags=witnessed_train.define_flags,
        config=False,
        argv=["planted", *arguments],
    )


if __name__ == "__main__":
    main()
