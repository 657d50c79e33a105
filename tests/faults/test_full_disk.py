"""Saves that fail, as on a full disk: the training goes on, says so, and ends with status 4 if the last one failed."""

import resource

import jax
import jax.numpy as jnp
import pytest

from bigjax.checkpoint.digests import complete_steps
from bigjax.checkpoint.failures import reason_of
from bigjax.checkpoint.lenient import LenientSaves
from bigjax.checkpoint.saving import Checkpoints
from bigjax.config import CheckpointConfig
from tests.commands import mounted, rows
from tests.finished_runs import RUN, commands

__all__ = ["commands"]


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
            assert (saves.news(), saves.news()) == ({"checkpoint/failed_saves": 1}, {})
            saves.save(3, state, {}, {}, last=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert (saves.failures, checkpoints.steps()) == (2, [1])
        saves.save(4, state, {}, {})
        saves.wait()
        assert (saves.failures, saves.last_failed, checkpoints.steps()) == (2, False, [4])
    assert said == [f"warning: the checkpoint of step {step} could not be saved: File too large" for step in (2, 3)]


def test_a_disk_that_is_full_and_has_room_again(tmp_path):
    state, said = {"x": jnp.arange(10_000) * 7919 % 10_007}, []
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "none") as disk:
        with Checkpoints(disk / "run", CheckpointConfig(keep_last=1)) as checkpoints:
            saves = LenientSaves(checkpoints, said.append)
            saves.save(1, state, {}, {})
            saves.wait()
            with pytest.raises(OSError, match="No space left"), (disk / "other").open("wb", buffering=0) as other:
                while True:
                    other.write(bytes(2**12))
            saves.save(2, state, {}, {})
            saves.wait()
            assert (saves.failures, saves.last_failed, checkpoints.steps()) == (1, True, [1])
            (disk / "other").unlink()
            saves.save(3, state, {}, {})
            saves.wait()
            assert (saves.failures, saves.last_failed, checkpoints.steps()) == (1, False, [3])
            found = checkpoints.restore({"x": jax.ShapeDtypeStruct((10_000,), jnp.int32, sharding=state["x"].sharding)})
        assert jnp.array_equal(found.state["x"], state["x"])
    # Which of many calls meets the full disk first, with TensorStore or without, is chance; what it meets is not.
    assert said == ["warning: the checkpoint of step 2 could not be saved: No space left on device"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "/a/path"), "No space left on device"),
        (
            ValueError('RESOURCE_EXHAUSTED: Error writing "/a/path": ' + "x" * 999 + " [os_error_code='28']"),
            "No space left",
        ),
        (ValueError("OUT_OF_RANGE: Failed writing\nto file 20: File too large [os_error_code='27']"), "File too large"),
        (OSError("disk gone"), "disk gone"),
        (RuntimeError("one\ntwo"), "one"),
        (RuntimeError(), "RuntimeError()"),
        (ValueError("y" * 999), "y" * 300),
    ],
)
def test_the_reason_is_what_the_operating_system_said(error, reason):
    said = reason_of(error)
    assert said.startswith(reason) and len(said) <= 300 and "path" not in said


def test_an_error_is_not_hidden_by_that_of_a_failed_save(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("bigjax.checkpoint.digests.write_digests", fail)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(3)}, {}, {})
        raise ZeroDivisionError
    assert capsys.readouterr().err == "warning: the last checkpoint could not be saved: disk full\n"


def test_a_run_goes_on_when_no_checkpoint_can_be_saved(commands, tmp_path):
    run = tmp_path / "run"
    # Text whose tokens, where no earlier command has left any in the cache, can be written.
    (tmp_path / "a.txt").write_text("To be, or not to be, that is the question. " * 400)
    text = (f"--config.data.sources=text:{tmp_path}/a.txt", "--config.data.holdout=0")
    process = commands.start("experiments.train", *RUN, *text, f"--workdir={run}")
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
