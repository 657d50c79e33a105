"""A run that goes back to its newest checkpoint and leaves a bad batch out, now and in every later session."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import TINY, Commands, contents, read, rows, shared_cache
from tests.saved_state import saved_state
from tests.train.test_guard import LONG

ROLLBACK = (*LONG, "--config.guard.on_nonfinite=rollback")
BAD = "4=nan,7=nan"
"""Step 5 draws the first; step 7, once that is left out, the second."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


def train(commands, folder: Path, *order: str, code: int = 0):
    witness = ("tests.witnessed_train", folder / "record", *order, "--")
    return commands.run("tests.poisoned", BAD, *witness, *ROLLBACK, f"--workdir={folder}/run", code=code)


@pytest.fixture(scope="module")
def rolled_back(commands, tmp_path_factory):
    """A run of 12 steps with two rollbacks: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("rolled-back")
    return folder, train(commands, folder)


def ids_by_step(folder: Path) -> list[list[int]]:
    """Return what every step was given in the end."""
    given = {line["step"]: line["ids"] for line in map(json.loads, (folder / "record").read_text().splitlines())}
    return [given[step] for step in range(12)]


def test_the_bad_batches_are_left_out_and_the_run_finishes(rolled_back):
    folder, done = rolled_back
    run = folder / "run"
    listed = read(run / "left_out.json")["batches"]
    assert [(entry["batch"], entry["step"]) for entry in listed] == [(4, 5), (7, 7)]
    assert read(run / "result.json")["left_out_batches"] == [4, 7]
    assert [row["step"] for row in rows(run) if "train/loss" in row] == list(range(1, 13))
    assert "back to the newest checkpoint, without batch 7; rollback 2 of at most 3" in done.stderr
    assert done.stderr.count("resuming after step 3") == 1
    assert done.stderr.count("resuming after step 6") == 1
    assert "Traceback" not in done.stderr
    events = [read(run / "forensics" / name / "event.json") for name in ("step-5", "step-7-rollback-1")]
    assert [event["left_out"] for event in events] == [[], [4]]
    given = ids_by_step(folder)
    for event in events:
        assert not set(event["batch_ids"]) & {id_ for ids in given for id_ in ids}


def test_the_run_is_that_of_the_good_batches_alone(commands, rolled_back, tmp_path):
    """The same batches, drawn by a run on which nothing was bad, give the same losses bit for bit."""
    (tmp_path / "run").mkdir()
    clean = ("tests.witnessed_train", tmp_path / "record", "--", *ROLLBACK, f"--workdir={tmp_path}/run")
    commands.run(*clean, "--config.train.steps=12")
    found = [row["train/loss"] for row in rows(tmp_path / "run") if "train/loss" in row]
    here = [row["train/loss"] for row in rows(rolled_back[0] / "run") if "train/loss" in row]
    assert found[:4] == here[:4]
    assert found[4:] != here[4:]
    given = ids_by_step(tmp_path)
    assert ids_by_step(rolled_back[0])[:10] == [given[number] for number in (0, 1, 2, 3, 5, 6, 8, 9, 10, 11)]


@pytest.fixture(scope="module")
def killed_after(commands, tmp_path_factory) -> Path:
    """The same run, killed when both batches were left out."""
    folder = tmp_path_factory.mktemp("killed")
    train(commands, folder, "SIGKILL@10", code=-9)
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("order", ["SIGKILL@4", "SIGKILL@10"])
def test_killed_before_or_after_a_rollback_and_resumed_is_the_same_run_bit_for_bit(
    commands, rolled_back, killed_after, tmp_path, order
):
    if order == "SIGKILL@10":
        shutil.copytree(killed_after, tmp_path, dirs_exist_ok=True)
    else:
        train(commands, tmp_path, order, code=-9)
    train(commands, tmp_path)
    assert rows(tmp_path / "run") == rows(rolled_back[0] / "run")
    assert ids_by_step(tmp_path) == ids_by_step(rolled_back[0])
    assert saved_state(tmp_path / "run") == saved_state(rolled_back[0] / "run")
    assert contents(tmp_path / "run" / "forensics").keys() == contents(rolled_back[0] / "run" / "forensics").keys()


def test_the_list_survives_in_the_checkpoint(commands, rolled_back, killed_after, tmp_path):
    shutil.copytree(killed_after, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "left_out.json").unlink()
    train(commands, tmp_path)
    assert rows(tmp_path / "run") == rows(rolled_back[0] / "run")
    assert read(tmp_path / "run" / "result.json")["left_out_batches"] == [4, 7]


def test_a_rolled_back_step_replays_to_the_same_numbers(commands, rolled_back):
    event = read(rolled_back[0] / "run" / "forensics" / "step-7-rollback-1" / "event.json")
    done = commands.run("tests.poisoned", BAD, *event["replay"].split()[2:])
    assert done.stdout.endswith("the same as recorded, bit for bit\n")


@pytest.mark.exhaustive
def test_rollbacks_end_after_their_limit(commands, tmp_path):
    run = (*TINY, "--config.optim.name=sgd", "--config.optim.lr=1e30", "--config.guard.on_nonfinite=rollback")
    run = (*run, "--config.guard.max_rollbacks=1", "--config.checkpoint.every_steps=1", f"--workdir={tmp_path}/run")
    done = commands.run("experiments.train", *run, code=3)
    assert done.stderr.count("rollback 1 of at most 1") == 1
    assert "after 1 rollbacks (guard.max_rollbacks=1); no checkpoint was written after it" in done.stderr
    assert "Traceback" not in done.stderr
    before = contents(tmp_path / "run" / "checkpoints"), read(tmp_path / "run" / "left_out.json")
    again = commands.run("experiments.train", *run, code=3)
    assert "rollback 1 of" not in again.stderr
    assert (contents(tmp_path / "run" / "checkpoints"), read(tmp_path / "run" / "left_out.json")) == before
