"""Damaged files, kills at any moment and full disks: a run goes on from its newest sound checkpoint, and says so."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import models, optim, sharding, step
from bigjax.checkpoint import Checkpoints, restore_part
from bigjax.checkpoint_digests import DIGESTS, complete_steps, verify
from bigjax.config import CheckpointConfig
from bigjax.errors import UserError
from bigjax.lenient_saves import LenientSaves
from bigjax.run_folder import RunFolder
from tests.commands import TINY, Commands, contents, read, rows, shared_cache
from tests.conftest import mesh_of

QUIET = ("--config.log.sample_tokens=0", "--config.log.plot=false", "--config.log.tensorboard=false")
STEPS = 40
CONFIG = (*TINY, *QUIET, f"--config.train.steps={STEPS}", "--config.train.eval_every_steps=20")
RUN = (*CONFIG, "--config.checkpoint.every_steps=10", "--config.checkpoint.keep_last=3")
EVERY_STEP = (*CONFIG, "--config.checkpoint.every_steps=1", "--config.checkpoint.keep_last=1")
KILLS = 10
SYNC = CheckpointConfig(keep_last=1, asynchronous=False)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory) -> Path:
    """A run of 40 steps with checkpoints 20, 30 and 40."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    commands.run("experiments.train", *RUN, f"--workdir={workdir}")
    assert [(report.step, report.problems) for report in verify(workdir / "checkpoints")] == [
        (40, ()),
        (30, ()),
        (20, ()),
    ]
    return workdir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of that run as if it had been killed just before it declared itself finished."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "result.json").unlink()
    return workdir


def biggest(folder: Path) -> Path:
    return max((path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> tuple[Path, str]:
    path = biggest(folder)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    return path, f"has {size // 2} bytes, {size} were saved"


def flip(folder: Path) -> tuple[Path, str]:
    path = biggest(folder)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    path.write_bytes(data)
    return path, f"has other bytes than the {len(data)} that were saved"


def delete(folder: Path) -> tuple[Path, str]:
    path = folder / "state" / "manifest.ocdbt"
    path.unlink()
    return path, "is missing"


def empty(folder: Path) -> tuple[Path, str]:
    path = folder / "state" / "_METADATA"
    size = path.stat().st_size
    os.truncate(path, 0)
    return path, f"is empty, {size} bytes were saved"


def add_nonsense(folder: Path) -> tuple[Path, str]:
    path = folder / "_CHECKPOINT_METADATA"
    size = path.stat().st_size
    path.write_text(path.read_text() + "}nonsense{")
    return path, f"has {size + 10} bytes, {size} were saved"


def add_file(folder: Path) -> tuple[Path, str]:
    path = folder / "state" / "d" / "00"
    path.write_text("nonsense")
    return path, "was not saved with it"


def delete_digests(folder: Path) -> tuple[Path, str]:
    path = folder / DIGESTS
    path.unlink()
    return path, "is missing: the save was cut short, or the file was lost"


def spoil_digests(folder: Path) -> tuple[Path, str]:
    path = folder / DIGESTS
    os.truncate(path, path.stat().st_size // 2)
    return path, "cannot be read: JSONDecodeError"


DAMAGES = (truncate, flip, delete, empty, add_nonsense, delete_digests)
Damage = Callable[[Path], tuple[Path, str]]


def final_state(workdir: Path) -> dict[str, bytes]:
    """Return the bytes of every array in the newest checkpoint of a run."""
    cfg = RunFolder(workdir).load_config()
    mesh_cfg, mesh = mesh_of(1)
    model = models.build(cfg.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    with jax.set_mesh(mesh), Checkpoints(workdir / "checkpoints", cfg.checkpoint) as checkpoints:
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
        restored = checkpoints.restore(step.abstract_state(cfg, model, tx, layout, mesh), cfg.train.steps)
    leaves = jax.tree.leaves_with_path(restored.state)
    assert len(leaves) > 20
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def assert_same_run(workdir: Path, whole: Path) -> None:
    assert rows(workdir) == rows(whole)
    assert final_state(workdir) == final_state(whole)
    results = [read(run / "result.json") for run in (workdir, whole)]
    for name in ("train_loss", "eval_loss", "eval_bits_per_byte", "steps", "tokens"):
        assert results[0][name] == results[1][name], name


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(commands, finished, run, damage):
    folder = run / "checkpoints"
    path, problem = damage(folder / "40")
    name, damaged = path.relative_to(folder / "40"), contents(folder / "40")
    assert [report.problems for report in verify(folder)] == [(f"{name} {problem}",), (), ()]
    done = commands.run("experiments.train", *RUN, f"--workdir={run}")
    said = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert said == [
        f"warning: checkpoint step 40: {name} {problem}; it is set aside as {folder}/40.damaged, and step 30 is used"
    ]
    assert "resuming after step 30" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["20", "30", "40", "40.damaged"]
    assert contents(folder / "40.damaged") == damaged
    assert_same_run(run, finished)


def test_all_damaged_is_an_error_that_lists_them(commands, run):
    folder = run / "checkpoints"
    for damage, number in ((flip, 20), (delete, 30), (delete_digests, 40)):
        damage(folder / str(number))
    before = contents(folder)
    done = commands.run("experiments.train", *RUN, f"--workdir={run}", code=2)
    error, *listed = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert error == (f"error: no checkpoint in {folder} can be used; put the files back, or choose another --workdir:")
    assert [line.split(": ")[0] for line in listed] == ["  step 40", "  step 30", "  step 20"]
    assert "state/manifest.ocdbt is missing" in listed[1]
    assert "has other bytes than the" in listed[2]
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [*DAMAGES, add_file, spoil_digests])
def test_a_reader_passes_over_a_damaged_checkpoint_and_changes_nothing(run, damage, capsys):
    cfg = RunFolder(run).load_config()
    mesh_cfg, mesh = mesh_of(1)
    model = models.build(cfg.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    abstract = step.abstract_state(cfg, model, optim.build(cfg.optim, model.specs, STEPS), layout, mesh)
    folder = run / "checkpoints"
    assert restore_part(folder, "params", abstract.params)[0] == 40
    path, problem = damage(folder / "40")
    before = contents(folder)
    assert restore_part(folder, "params", abstract.params)[0] == 30
    said = capsys.readouterr().err
    if damage is delete_digests:  # as while a run saves it
        assert said == ""
    else:
        assert said.startswith(f"warning: checkpoint step 40: {path.relative_to(folder / '40')} {problem}")
        assert said.endswith("; step 30 is used\n")
        assert said.count("\n") == 1
    assert contents(folder) == before


def test_digests_of_another_step_are_named(run):
    folder = run / "checkpoints"
    shutil.rmtree(folder / "40")
    shutil.copytree(folder / "30", folder / "40")
    assert verify(folder)[0].problems == (f"{DIGESTS} is that of step 30",)
    assert verify(run / "nowhere") == []


def test_the_same_step_may_be_set_aside_again(tmp_path):
    state = {"x": jnp.arange(3)}
    abstract = {"x": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=state["x"].sharding)}
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=2)) as checkpoints:
        checkpoints.save(1, state, {}, {})
        for _ in range(2):
            checkpoints.save(2, state, {}, {})
            checkpoints.wait()
            truncate(tmp_path / "2")
            with pytest.raises(UserError, match=r"step 2: .* were saved"):
                checkpoints.restore(abstract, 2)
            assert checkpoints.restore(abstract).step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged", "2.damaged-2"]


def test_killed_at_random_moments_ends_as_if_nothing_had_been(commands, finished, tmp_path):
    """Checkpoints after every step, of which one is kept, saved while the next steps run."""
    run, rng, newest = tmp_path / "run", random.Random(0), 0
    folder = run / "checkpoints"
    for target in sorted(rng.sample(range(1, STEPS - 6), KILLS)):
        before = names(folder)
        process = commands.start("experiments.train", *EVERY_STEP, f"--workdir={run}")
        # The delay counts from when a folder of that step or a later one shows up, temporary or not.
        while process.poll() is None and newest_of(names(folder) - before) < target:
            time.sleep(0.002)
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


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def newest_of(names: set[str]) -> int:
    return max((int(name.partition(".")[0]) for name in names if not name.endswith(".damaged")), default=0)


KILLED = """
import os, shutil, signal, sys
import jax.numpy as jnp
from pathlib import Path
from bigjax import checkpoint_digests
from bigjax.checkpoint import Checkpoints
from bigjax.config import CheckpointConfig

checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(keep_last=1))
checkpoints.save(1, {"x": jnp.arange(3)}, {}, {})
checkpoints.wait()
module, name = {"digests": (checkpoint_digests, "write_digests"), "removal": (shutil, "rmtree")}[sys.argv[2]]
setattr(module, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
checkpoints.save(2, {"x": jnp.arange(3)}, {}, {})
checkpoints.wait()
"""


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


def test_a_first_save_cut_short_is_no_checkpoint(tmp_path, capsys):
    state = {"x": jnp.arange(3)}
    with Checkpoints(tmp_path, SYNC) as checkpoints:
        assert not checkpoints.resumable()
        checkpoints.save(1, state, {}, {})
        assert checkpoints.resumable()
    delete_digests(tmp_path / "1")
    with Checkpoints(tmp_path, SYNC) as checkpoints:
        assert not checkpoints.resumable()
        checkpoints.save(1, state, {}, {})
        assert checkpoints.steps() == [1]
    assert capsys.readouterr().err.count("warning: checkpoint step 1: digests.json is missing") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.damaged"]


def test_saves_fail_while_the_disk_is_full_and_succeed_later(tmp_path):
    state, said = {"x": jnp.arange(10_000) * 7919 % 10_007}, []
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1)) as checkpoints:
        saves = LenientSaves(checkpoints, said.append)
        saves.save(1, state, {}, {})
        saves.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
            saves.save(2, state, {}, {})
            saves.wait()
            assert (saves.failures, saves.last_failed, checkpoints.steps()) == (1, True, [1])
            saves.save(3, state, {}, {})
            saves.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert (saves.failures, checkpoints.steps()) == (2, [1])
        saves.save(4, state, {}, {})
        saves.wait()
        assert (saves.failures, saves.last_failed, checkpoints.steps()) == (2, False, [4])
    assert [line[: line.index(" could")] for line in said] == [
        "warning: the checkpoint of step 2",
        "warning: the checkpoint of step 3",
    ]
    assert all("File too large" in line for line in said)


def test_an_error_is_not_hidden_by_that_of_a_failed_save(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("bigjax.checkpoint_digests.write_digests", fail)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(3)}, {}, {})
        raise ZeroDivisionError
    assert capsys.readouterr().err == "warning: the last checkpoint could not be saved: disk full\n"


def test_a_run_goes_on_when_no_checkpoint_can_be_saved(commands, tmp_path):
    run = tmp_path / "run"
    process = commands.start("experiments.train", *RUN, f"--workdir={run}")
    # Files as long as the arrays of a checkpoint cannot be written, those of the metrics can.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    said = process.communicate()[1]
    assert process.returncode == 4, said
    assert said.count("could not be saved: ") == 4
    assert said.endswith(
        "the last checkpoint, of step 40, could not be saved; the same command continues from the newest\n"
    )
    assert "Traceback" not in said
    assert [row["checkpoint/failed_saves"] for row in rows(run) if "checkpoint/failed_saves" in row] == [1, 2, 4]
    assert not (run / "result.json").exists()
    assert complete_steps(run / "checkpoints") == []
