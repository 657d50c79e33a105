"""`experiments.check`: what every check says of mistakes, its help, and the check of checkpoints."""

import os

import numpy as np
import pytest

from bigjax import config
from bigjax.data.stored import megatron
from bigjax.run.folder import RunFolder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the first argument names a check: the checks are equivalence, resume, mup, checkpoint, data and replay"),
        (
            ("equivalense",),
            "there is no check 'equivalense': the checks are equivalence, resume, mup, checkpoint, data and replay;",
        ),
        (("equivalence",), "--config=FILE[:ARG] is missing"),
        (("equivalence", "--config=configs/quickstart.py", "--meshes=daat=8"), "'daat=8' is not AXIS=SIZE"),
        (("equivalence", "--config=configs/quickstart.py", "--meshes=data=16"), "needs 16 devices, but there are 8"),
        (("checkpoint",), "--workdir is missing"),
        (("checkpoint", "--workdir=no/run"), "no/run is not the folder of a run"),
        (("data",), "--workdir is missing"),
        (("data", "--sources=text:a.txt"), "'text:a.txt' has no manifest: give tokens:GLOB"),
    ],
)
def test_mistakes_are_one_sentence(call_check, arguments, message):
    status, _, said = call_check(*arguments)
    assert status == 2 and message in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", [(), ("equivalence",), ("resume",), ("mup",), ("checkpoint",), ("data",)])
def test_help(call_check, name):
    status, said, _ = call_check(*name, "--help")
    assert status == 0 and "python -m experiments.check" in said and "4 " in said


def test_checkpoints_of_a_run(call_check, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert call_check("checkpoint", f"--workdir={tmp_path}")[::2] == (2, f"error: {tmp_path} holds no checkpoint\n")
    # Orbax's files without digests, as a save leaves them that was killed.
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    status, said, _ = call_check("checkpoint", f"--workdir={tmp_path}")
    assert status == 4 and said.startswith("step 8: digests.json is missing")


def test_data_of_a_run(call_check, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("some text")
    megatron.write(tmp_path / "a.bin", [np.arange(200)], np.dtype(np.uint16))
    sources = (f"text:{tmp_path}/a.txt", f"tokens:{tmp_path}/*.bin")
    run = RunFolder(tmp_path / "run")
    run.write_config(config.replace(config.Config(), data={"sources": sources}))
    assert call_check("data", f"--workdir={run.path}")[:2] == (
        0,
        f"{tmp_path}: 1 shards\nas it was, to the last byte\n",
    )
    (tmp_path / "a.txt").write_text("some test")
    stamp = (tmp_path / "a.bin").stat()
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-2] + b"\1\0")
    os.utime(tmp_path / "a.bin", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    status, said, _ = call_check("data", f"--workdir={run.path}")
    assert status == 4
    assert "a.bin has changed: its sha256 was" in said and "a.txt: sha256 was" in said and "NOT as it was" in said
    status, said, _ = call_check("data", f"--sources=tokens:{tmp_path}/*.bin")
    assert status == 4 and "a.bin has changed" in said
