"""Several processes of one run: the same batches, the same losses, and a run that one process can take over."""

import json
import shutil

import pytest

from tests.commands import TINY, Commands, read, rows, shared_cache
from tests.witnessed_train import STREAM_STEPS

TRAIN = "tests.witnessed_train"
DEVICES = 4
"""Of every run here, over all its processes."""

FOUR_STEPS = (
    *TINY,
    "--config.train.steps=4",
    "--config.train.eval_every_steps=2",
    "--config.checkpoint.every_steps=2",
    "--config.optim.name=adamw",
)
MESH = ("--config.mesh.fsdp=2",)  # and 2 along mesh.data


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def together(commands, tmp_path_factory):
    """The folder of a run of 4 steps by two processes with 2 devices each."""
    workdir = tmp_path_factory.mktemp("runs") / "together"
    done = commands.run_together(
        2, "experiments.train", *FOUR_STEPS, *MESH, f"--workdir={workdir}", devices=DEVICES // 2
    )
    return workdir, done


def stream(commands, folder, processes: int) -> list[tuple]:
    """Return the ids and the hashes of the rows of every global batch, put together from what each process drew."""
    arguments = (folder / "record", "stream", "--", *TINY, f"--workdir={folder}/run")
    if processes == 1:
        commands.run(TRAIN, *arguments, devices=DEVICES)
    else:
        commands.run_together(processes, TRAIN, *arguments, devices=DEVICES // processes)
    parts = [
        [json.loads(line) for line in (folder / f"record.{index}").read_text().splitlines()]
        for index in range(processes)
    ]
    assert [len(part) for part in parts] == [STREAM_STEPS] * processes
    assert {len(batch["ids"]) for part in parts for batch in part} == {8 // processes}
    return [
        tuple([entry for batch in batches for entry in batch[name]] for name in ("ids", "rows"))
        for batches in zip(*parts, strict=True)
    ]


@pytest.fixture(scope="module")
def stream_of_one(commands, tmp_path_factory):
    return stream(commands, tmp_path_factory.mktemp("one"), 1)


@pytest.mark.sample
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_draws_the_same_global_batches(commands, tmp_path, stream_of_one, processes):
    assert stream(commands, tmp_path, processes) == stream_of_one
    assert len({id_ for ids, _ in stream_of_one for id_ in ids}) == 8 * STREAM_STEPS


@pytest.mark.exhaustive
def test_two_processes_train_as_one_does(commands, together, tmp_path):
    workdir, (first, second) = together
    commands.run("experiments.train", *FOUR_STEPS, *MESH, f"--workdir={tmp_path}/alone", devices=DEVICES)
    here, there = rows(workdir), rows(tmp_path / "alone")
    assert [row["step"] for row in here] == [1, 2, 2, 3, 4, 4]
    for row, expected in zip(here, there, strict=True):
        assert row == pytest.approx(expected, rel=1e-5), row["step"]
    results = [read(run / "result.json") for run in (workdir, tmp_path / "alone")]
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], rel=1e-5)
    assert results[0]["mesh"] == results[1]["mesh"]
    (session,) = read(workdir / "environment.json")["sessions"]
    assert (session["processes"], session["devices"]["count"]) == (2, DEVICES)
    # Process 0 speaks for all; the network library of both writes to stdout as it likes.
    assert "held out: loss" in first.stdout
    assert "held out" not in second.stdout
    assert [line[:12] for line in second.stderr.splitlines()] == ["bigjax: run "]


def test_one_process_takes_over_a_run_of_two(commands, together, tmp_path):
    workdir = shutil.copytree(together[0], tmp_path / "run")
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    done = commands.run("experiments.train", *FOUR_STEPS, *MESH, f"--workdir={workdir}", devices=DEVICES)
    assert "resuming after step 2" in done.stderr
    here, there = rows(workdir), rows(together[0])
    assert here[:3] == there[:3]
    for row, expected in zip(here, there, strict=True):
        assert row == pytest.approx(expected, rel=1e-5), row["step"]
    assert [session["processes"] for session in read(workdir / "environment.json")["sessions"]] == [2, 1]
