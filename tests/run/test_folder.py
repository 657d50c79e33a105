"""A run folder belongs to one config, says so readably, and its files are whole."""

import json
import math
import subprocess

import pytest

from bigjax.checkpoint.digests import DIGESTS, newest_sound
from bigjax.config import Config, replace
from bigjax.config.strict import fingerprint
from bigjax.errors import UserError
from bigjax.run.folder import RunFolder, git_revision
from bigjax.run.json_files import dumps, write_json
from bigjax.run.rows import read_rows

CFG = Config()


def test_new_folder_says_what_runs_where(tmp_path):
    run = RunFolder(tmp_path / "a" / "b")
    assert run.open(CFG) is False
    stored = json.loads(run.config.read_text())
    assert stored["fingerprint"] == fingerprint(CFG)
    assert run.load_config() == CFG
    (session,) = json.loads(run.environment.read_text())["sessions"]
    assert session["devices"] == {"platform": "cpu", "kind": "cpu", "count": 8}
    assert session["processes"] == 1
    assert {"jax", "jaxlib", "numpy", "orbax-checkpoint"} <= set(session["packages"])
    assert session["changed"] == {}
    assert not run.complete


def test_same_maths_resumes_and_records_the_start(tmp_path):
    run = RunFolder(tmp_path)
    run.open(CFG)
    moved = replace(CFG, mesh={"data": 4, "tensor": 2}, log={"every_steps": 1})
    assert run.open(moved) is True
    assert run.load_config() == moved
    first, second = json.loads(run.environment.read_text())["sessions"]
    assert first["changed"] == {}
    assert second["changed"] == {"mesh.data": [0, 4], "mesh.tensor": [1, 2], "log.every_steps": [10, 1]}


def test_other_maths_is_refused_by_name(tmp_path):
    run = RunFolder(tmp_path)
    run.open(CFG)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        run.open(replace(CFG, optim={"lr": 2e-3}, train={"seed": 1}, log={"every_steps": 1}))
    assert str(error.value).splitlines() == [
        f"{tmp_path} belongs to another run; choose another --workdir. It differs in",
        "  train.seed: 0 there, 1 here",
        "  optim.lr: 0.001 there, 0.002 here",
    ]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and not the folder of a run"):
        RunFolder(tmp_path).open(CFG)
    with pytest.raises(UserError, match="not the folder of a run"):
        RunFolder(tmp_path / "thesis.tex").open(CFG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_start_that_was_cut_short_can_be_repeated(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "config.json.tmp").write_text('{"conf')
    assert run.open(CFG) is False
    run.environment.unlink()
    assert run.open(CFG) is True
    assert len(json.loads(run.environment.read_text())["sessions"]) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"fingerprint": ""}'])
def test_unreadable_config(tmp_path, text):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        run.load_config()
    run.config.write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        run.load_config()


def test_an_error_does_not_quote_a_whole_file(tmp_path):
    run = RunFolder(tmp_path)
    for path, read in (
        (run.config, run.load_config),
        (run.metrics, lambda: list(read_rows(run.metrics))),
        (tmp_path / "8" / DIGESTS, lambda: newest_sound(tmp_path, [8])),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'{"a": "' + b"nonsense " * 100 + b'\xff"}\n')
        with pytest.raises(UserError, match=r"UnicodeDecodeError: .* in position 907") as caught:
            read()
        assert "nonsense" not in str(caught.value)


def test_config_of_another_version(tmp_path):
    run = RunFolder(tmp_path)
    run.config.write_text('{"config": {"optim": {"learning_rate": 1.0}}}')
    with pytest.raises(UserError, match=r"optim\.learning_rate"):
        run.open(CFG)


def test_result_completes_the_run(tmp_path):
    run = RunFolder(tmp_path)
    run.open(CFG)
    run.write_result({"eval/loss": math.nan, "worst": [-math.inf, math.inf], "steps": 3})
    assert run.complete
    text = run.result.read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "eval/loss": "NaN",
        "worst": ["-Infinity", "Infinity"],
        "steps": 3,
    }


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert float(json.loads(dumps({"a": -math.inf}))["a"]) == -math.inf


def test_git_revision(monkeypatch):
    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert git_revision() is None
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=" M x\n"))
    assert git_revision() == {"revision": "M x", "dirty": True}
