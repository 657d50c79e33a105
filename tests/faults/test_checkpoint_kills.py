"""Killed at any moment, a run goes on from its newest complete checkpoint as if nothing had been.

The marker `faults` selects the long form, with 60 kills: `pytest -m faults`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bigjax.checkpoint.digests import DIGESTS, all_steps, complete_steps, verify
from bigjax.checkpoint.saving import Checkpoints
from bigjax.config import CheckpointConfig
from tests import saver
from tests.finished_runs import CONFIG, STEPS, assert_same_run, commands, finished

__all__ = ["commands", "finished"]

EVERY_STEP = (*CONFIG, "--config.checkpoint.every_steps=1", "--config.checkpoint.keep_last=1")
SYNC = CheckpointConfig(keep_last=1, asynchronous=False)


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.faults)])
def test_a_saver_killed_at_random_moments_loses_nothing_that_was_complete(tmp_path, kills):
    """One save follows the other without a pause, so that a kill nearly always falls into one."""
    rng, folder, newest, cut_short = random.Random(0), tmp_path / "checkpoints", 0, 0
    for _ in range(kills):
        before = names(folder)
        process = saver.fork(folder)
        if newest and rng.random() < 0.5:
            wait_for(process.is_alive, lambda newest=newest: max(complete_steps(folder)) > newest)
        else:
            wait_for(process.is_alive, lambda before=before: names(folder) - before)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        complete = complete_steps(folder)
        assert [report.step for report in verify(folder) if not report.problems] == complete[::-1]
        cut_short += all_steps(folder) != complete or any(name.endswith("-tmp") for name in names(folder))
        # Loads it, and compares every element.
        assert saver.newest(folder) == max(complete, default=0) >= newest
        newest = max(complete, default=0)
    assert newest and (cut_short or kills < 50)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.faults)])
def test_a_launcher_killed_at_random_moments_ends_as_if_nothing_had_been(commands, finished, tmp_path, kills):
    """Checkpoints after every step, of which one is kept, saved while the next steps run."""
    run, rng, newest = tmp_path / "run", random.Random(0), 0
    folder = run / "checkpoints"
    for target in sorted(rng.sample(range(1, STEPS - 6), kills)):
        before = names(folder)
        process = commands.start("experiments.train", *EVERY_STEP, f"--workdir={run}")
        # The delay counts from when a folder of that step or a later one shows up, temporary or not.
        wait_for(
            lambda process=process: process.poll() is None,
            lambda before=before, target=target: newest_of(names(folder) - before) >= target,
        )
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        said = process.communicate()[1]
        assert process.returncode == -signal.SIGKILL, said
        assert (f"resuming after step {newest}\n" in said) if newest else ("resuming" not in said), said
        # Whatever has its digests is whole, and the newest of them is never older than before.
        complete = complete_steps(folder)
        assert [report.step for report in verify(folder) if not report.problems] == complete[::-1]
        assert max(complete, default=0) >= newest
        newest = max(complete, default=0)
    assert newest > 0
    commands.run("experiments.train", *EVERY_STEP, f"--workdir={run}")
    assert complete_steps(folder) == [STEPS]
    assert_same_run(run, finished)


def wait_for(alive, arrived) -> None:
    """Return as soon as something arrived, or the process has ended."""
    while alive() and not arrived():
        time.sleep(0.002)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def newest_of(names: set[str]) -> int:
    return max((int(name.partition(".")[0]) for name in names if not name.endswith(".damaged")), default=0)


KILLED = """
import os, shutil, signal, sys
import jax.numpy as jnp
from pathlib import Path
from bigjax.checkpoint import digests as checkpoint_digests
from bigjax.checkpoint.saving import Checkpoints
from bigjax.config import CheckpointConfig

checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(keep_last=1))
checkpoints.save(1, {"x": jnp.arange(3)}, {}, {})
checkpoints.wait()
module, name = {"digests": (checkpoint_digests, "write_digests"), "removal": (shutil, "rmtree")}[sys.argv[2]]
setattr(module, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
checkpoints.save(2, {"x": jnp.arange(3)}, {}, {})
checkpoints.wait()
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("moment", "left", "used"),
    [("digests", ["1", "2"], 1), ("removal", ["1.removing", "2"], 2)],
    ids=["before the digests", "before the removal of the older one"],
)
def test_killed_at_the_worst_moments_leaves_a_complete_checkpoint(tmp_path, moment, left, used):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    child = subprocess.run([sys.executable, "-c", KILLED, tmp_path, moment], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    state = {"x": jnp.arange(3)}
    abstract = {"x": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=state["x"].sharding)}
    with Checkpoints(tmp_path, SYNC) as checkpoints:
        assert checkpoints.restore(abstract).step == used
        checkpoints.save(3, state, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == (["2.damaged", "3"] if used == 1 else ["3"])


@pytest.mark.exhaustive
def test_a_first_save_cut_short_is_no_checkpoint(tmp_path, capsys):
    state = {"x": jnp.arange(3)}
    with Checkpoints(tmp_path, SYNC) as checkpoints:
        assert not checkpoints.resumable()
        checkpoints.save(1, state, {}, {})
        assert checkpoints.resumable()
    (tmp_path / "1" / DIGESTS).unlink()
    with Checkpoints(tmp_path, SYNC) as checkpoints:
        assert not checkpoints.resumable()
        checkpoints.save(1, state, {}, {})
        assert checkpoints.steps() == [1]
    assert capsys.readouterr().err.count("warning: checkpoint step 1: digests.json is missing") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.damaged"]
