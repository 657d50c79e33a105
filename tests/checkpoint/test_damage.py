"""Damaged checkpoints: a run goes on from its newest sound one and says so, and sets the others aside untouched."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bigjax import models, sharding
from bigjax.checkpoint.digests import DIGESTS, verify, write_digests
from bigjax.checkpoint.reading import UnreadableCheckpoint
from bigjax.checkpoint.saving import Checkpoints, restore_part
from bigjax.config import CheckpointConfig
from bigjax.errors import UserError
from bigjax.run.folder import RunFolder
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests.commands import contents
from tests.conftest import mesh_of
from tests.finished_runs import RUN, STEPS, assert_same_run, commands, finished
from tests.saver import state_after

__all__ = ["commands", "finished"]


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


@pytest.mark.sample
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


def agree_again(checkpoints: Path, step: int) -> None:
    """Write the digests of a damaged step folder anew, as if what it holds had been saved."""
    (checkpoints / str(step) / DIGESTS).unlink()
    write_digests(checkpoints, step)


def blank(path: Path) -> None:
    path.write_bytes(b"{}")


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [blank, halve, Path.unlink])
def test_files_that_orbax_cannot_read_though_their_digests_agree_are_one_sentence(tmp_path, spoil, capfd):
    cfg = CheckpointConfig(keep_last=2, asynchronous=False)
    with Checkpoints(tmp_path / "sound", cfg) as checkpoints:
        for number in (1, 2):
            checkpoints.save(number, {"params": state_after(number)}, {}, {})
    abstract = jax.eval_shape(lambda: state_after(1))
    abstract = jax.tree.map(lambda x: x.update(sharding=jnp.zeros(()).sharding), abstract)
    folder, unreadable = tmp_path / "sound" / "2", Counter()
    for name in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.name not in (DIGESTS, "d")):
        if not (folder / name).is_file():
            continue
        copy = shutil.copytree(tmp_path / "sound", tmp_path / name.as_posix().replace("/", "_"))
        spoil(copy / "2" / name)
        agree_again(copy, 2)
        before = contents(copy)
        with Checkpoints(copy, cfg) as checkpoints:
            whole = partial(checkpoints.restore, {"params": abstract})
            for restore in (
                lambda whole=whole: whole().state["params"],
                lambda copy=copy: restore_part(copy, "params", abstract)[1],
            ):
                try:
                    loaded = restore()
                except UnreadableCheckpoint as error:
                    unreadable[name.name] += 1
                    assert f"the checkpoint {copy}/2 cannot be read, though its digests agree: " in str(error)
                    assert len(str(error).splitlines()) == 1 and len(str(error)) < 800
                else:  # Orbax does without the file
                    assert all(bool((x == 2).all()) for x in jax.tree.leaves(loaded)), name
        assert contents(copy) == before
    assert unreadable["_METADATA"] == 2 and unreadable["manifest.ocdbt"] == 2
    assert unreadable["_CHECKPOINT_METADATA"] == 2
    assert capfd.readouterr().err == ""


def test_a_run_whose_checkpoint_orbax_cannot_read_ends_with_one_sentence(commands, run):
    folder = run / "checkpoints"
    halve(biggest(folder / "40"))
    agree_again(folder, 40)
    before = contents(folder)
    done = commands.run("experiments.train", *RUN, f"--workdir={run}", code=2)
    said = [line for line in done.stderr.splitlines() if not re.match("(bigjax|model|mesh|data): ", line)]
    assert len(said) == 1
    assert said[0].startswith(f"error: the checkpoint {folder}/40 cannot be read, though its digests agree: ")
    assert said[0].endswith("to go on from an older one, rename it to 40.unreadable")
    assert contents(folder) == before
