"""A run whose folder lies in an S3 store: the same numbers as on a disk, through kills, faults and other processes."""

import json
import os
import random
import time

import pytest

from bigjax.checkpoint import digests
from bigjax.run.rows import FLUSH_S, read_rows
from tests import object_store, saver
from tests.commands import TIMINGS, TINY, Commands, shared_cache

TRAIN = "experiments.train"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


def losses(folder):
    rows = read_rows(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


@pytest.fixture(scope="module")
def on_disk(commands, tmp_path_factory):
    """The same run, on a disk and never cut short."""
    folder = tmp_path_factory.mktemp("run") / "run"
    commands.run(TRAIN, *TINY, f"--workdir={folder}")
    return folder


def test_a_run_in_a_store_is_that_on_a_disk_after_a_kill_too(commands, on_disk, store, bucket):
    run = bucket / "run"
    killed = commands.start(TRAIN, *TINY, f"--workdir={run}", "--config.train.steps=8", variables=store.variables())
    try:
        end = time.monotonic() + 120
        while not (run / "checkpoints" / "4" / "digests.json").exists() and time.monotonic() < end:
            assert killed.poll() is None or killed.returncode == 0
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.communicate()
    again = commands.run(TRAIN, *TINY, f"--workdir={run}", variables=store.variables())
    assert "resuming after step" in again.stderr or "is complete" in again.stderr
    assert losses(run) == losses(on_disk)
    here, there = (json.loads((place / "result.json").read_text()) for place in (run, on_disk))
    assert {k: v for k, v in here.items() if k not in ("tokens_per_s", "wall_s")} == {
        k: v for k, v in there.items() if k not in ("tokens_per_s", "wall_s")
    }
    assert all(not report.problems for report in digests.verify(run / "checkpoints"))


def test_two_trainers_in_one_folder(commands, store, bucket):
    from bigjax.run import lease

    (bucket / "run").joinpath("x")
    mine, gone = lease.take(bucket / "run" / "trainer.lock")
    assert gone is None
    refused = commands.run(TRAIN, *TINY, f"--workdir={bucket}/run", code=2, variables=store.variables())
    assert f"{bucket}/run is in use by another trainer: host" in refused.stderr
    assert "compil" not in refused.stderr
    lease.release(bucket / "run" / "trainer.lock", mine)
    assert list(bucket.glob("run/*")) == []


@pytest.mark.faults
def test_one_sentence_before_anything_compiles(commands, store, bucket):
    for arguments, variables, said in (
        (["--workdir=s3://no-such-bucket/run"], {}, "there is no bucket 'no-such-bucket'"),
        (["--workdir=foo://a/run"], {}, "is no store that fsspec knows"),
        ([f"--workdir={bucket}/run"], {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "has not answered for"),
    ):
        ended = commands.run(TRAIN, *TINY, *arguments, code=2, variables=store.variables() | variables)
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and said in errors[0], ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.faults
def test_training_goes_on_while_the_store_fails(commands, on_disk, store, bucket):
    luck, run = random.Random(1), bucket / "run"
    with object_store.proxy(store) as port:
        store.fault = lambda *_: luck.choice(["drop", "503", "truncate", "delay"]) if luck.random() < 0.2 else None
        ended = commands.run(TRAIN, *TINY, f"--workdir={run}", variables=store.variables(port))
    assert losses(run) == losses(on_disk)
    assert sum("did not answer" in line for line in ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.faults)])
def test_killed_while_it_saves_there_is_always_a_whole_checkpoint(store, bucket, kills):
    luck, folder, newest = random.Random(2), bucket / "checkpoints", 0
    for _ in range(kills):
        saving = saver.fork(folder, store.variables())
        try:
            end = time.monotonic() + 60
            while digests.complete_steps(folder)[-1:] <= [newest] and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(luck.uniform(0, 0.2))  # it does nothing but save
        finally:
            saving.kill()
            saving.join()
        assert saver.newest(folder) > newest
        newest = saver.newest(folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [2, 4])
def test_other_numbers_of_processes_go_on_with_a_run(commands, on_disk, store, bucket, count, monkeypatch):
    run = bucket / "run"
    flat = (*TINY, f"--workdir={run}", "--config.optim.decay=0")
    commands.run(TRAIN, *flat, "--config.train.steps=4", devices=4, variables=store.variables())
    for name, value in store.variables().items():
        monkeypatch.setitem(os.environ, name, value)
    commands.run_together(count, TRAIN, *flat, "--config.mesh.fsdp=4", devices=4 // count)
    steps = [row["step"] for row in read_rows(run / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 9))
    assert sorted(path.name for path in (run / "checkpoints" / "8").iterdir() if path.is_dir()) == [
        f"{process:05d}" for process in range(count)
    ]
    assert all(not report.problems for report in digests.verify(run / "checkpoints"))
    again = commands.run(TRAIN, *flat, variables=store.variables())
    assert "is complete" in again.stderr + again.stdout


@pytest.mark.faults
def test_requests_a_minute_of_metrics_events_and_lock(store, tmp_path, monkeypatch):
    from bigjax.run import rows

    monkeypatch.setattr(rows, "FLUSH_S", FLUSH_S / 50)  # fifty times as fast
    with object_store.proxy(store) as port, object_store.used(store, port):
        appended = rows.open_rows(store.bucket() / "metrics.jsonl")
        store.requests.clear()
        end, count = time.monotonic() + 2.0, 0
        while time.monotonic() < end:
            appended.write(json.dumps({"step": count, "time_s": 0.0}) + "\n")
            count += 1
            time.sleep(0.001)
        puts = [one for one in store.requests if one[1] == "PUT"]
        assert 1 <= len(puts) <= 2.0 / (FLUSH_S / 50) + 1
        appended.close()
        assert [row["step"] for row in read_rows(str(appended._path))] == list(range(count))
