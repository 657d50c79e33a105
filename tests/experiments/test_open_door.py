"""A researcher's own folder: family, task, optimizer, source, tokenizer and config, with nothing of ours edited."""

import json
import shutil

import pytest

from bigjax.config import Config, named, strict
from tests.commands import ROOT, Commands, read, shared_cache

EXAMPLE = ROOT / "docs" / "examples" / "my"
"""The folder that the documentation shows."""

FILES = {path.stem: path.read_text() for path in EXAMPLE.glob("*.py")}


def write(folder, **changes: str):
    """Write the researcher's folder, with other content in some of its files."""
    (folder / "my").mkdir(exist_ok=True)
    for name, content in {**FILES, **changes}.items():
        (folder / "my" / f"{name}.py").write_text(content)
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def run(commands, home):
    """A finished run, typed in the researcher's folder."""
    done = commands.run("experiments.train", "--config=my/config.py", "--workdir=runs/own", cwd=home)
    return home / "runs" / "own", done.stderr


def test_a_run_is_trained_and_keeps_the_code_it_was_made_with(run):
    folder, said = run
    assert "model: " in said
    config = read(folder / "config.json")["config"]
    assert config["model"]["gated"] == {"strength": 0.5}
    assert config["task"] == {"factor": 1.0}
    kept = {path.stem for path in (folder / "code").iterdir()}
    assert kept == {f"my.{name}" for name in ("model", "scale", "optimizer", "task", "source", "tokenizer")}
    assert (folder / "code" / "my.scale.py").read_text() == FILES["scale"]
    assert read(folder / "tokenizer.json") == {"kind": "my.tokenizer:Letters"}


OTHERS = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("model", "tokenizer", "optimizer", "task")]


@pytest.mark.parametrize("name", ["scale", "source", *OTHERS])
def test_a_run_of_other_code_is_another_run(commands, run, tmp_path, name):
    shutil.copytree(
        run[0].parent.parent, tmp_path / "home", ignore=shutil.ignore_patterns("checkpoints", "__pycache__")
    )
    changed = FILES[name].replace("range(200)", "range(201)") + "\nCHANGED = True\n"
    write(tmp_path / "home", **{name: changed})
    said = commands.run(
        "experiments.train", "--config=my/config.py", "--workdir=runs/own", cwd=tmp_path / "home", code=2
    )
    assert f"my.{name}: sha256 was " in said.stderr


def test_flags_and_errors_treat_its_fields_as_any_others(commands, home):
    def told(*arguments: str, code: int = 2) -> str:
        done = commands.run("experiments.train", "--config=my/config.py", *arguments, cwd=home, code=code)
        return done.stdout + done.stderr

    assert "model.gated.strength = 0.25" in told("--config.model.gated.strength=0.25", "--print_config", code=0)
    assert "out of bounds, expected a float above 0" in told("--config.model.gated.strength=-1", "--print_config")
    assert "did you mean model.gated.strength?" in told("--config.model.gated.strenght=1", "--print_config")
    assert "set task.factor=8" in told("--config.task.factor=9", "--print_config")
    assert "did you mean my.model:gated?" in told("--config.model.family=my.model:gatd", "--print_config")
    assert "there is no module my.modle" in told("--config.model.family=my.modle:gated", "--print_config")


def test_it_is_scored_continued_planned_and_reported(commands, run, home):
    folder = run[0].relative_to(home)
    scores = commands.run("experiments.evaluate", f"--workdir={folder}", cwd=home)
    assert "loss" in scores.stdout
    told = commands.run("experiments.generate", f"--workdir={folder}", "--prompt=1 2 3", "--max_new_tokens=8", cwd=home)
    assert told.stdout
    planned = ("--topology=v5e:2x2", "--analytic", "--out=plan.json", "--config.train.global_batch_size=8")
    commands.run("experiments.plan", "--config=my/config.py", *planned, cwd=home)
    assert json.loads((home / "plan.json").read_text())
    commands.run("experiments.report", f"--runs={folder}", "--out=report", cwd=home)
    assert (home / "report").is_dir()


@pytest.mark.exhaustive
def test_it_is_swept(commands, home):
    commands.run("experiments.sweep", "--config=my/config.py", "--workdir=runs/swept", cwd=home)
    runs = [read(path)["config"] for path in sorted((home / "runs" / "swept").glob("*/config.json"))]
    assert sorted(config["model"]["gated"]["strength"] for config in runs) == [0.5, 0.75]


@pytest.mark.exhaustive
def test_its_meshes_are_equal(commands, home):
    arguments = ("--config=my/config.py", "--meshes=data=2;fsdp=2")
    done = commands.run("experiments.check", "equivalence", *arguments, cwd=home, devices=2)
    assert "SAME" in done.stdout


@pytest.mark.exhaustive
def test_it_resumes_bit_for_bit(commands, home):
    done = commands.run("experiments.check", "resume", "--config=my/config.py", cwd=home)
    assert "SAME" in done.stdout + done.stderr


@pytest.mark.exhaustive
def test_its_widths_are_checked(commands, home):
    adam = ("--config.optim.name=adamw", "--config.optim.weight_decay=0.0")
    done = commands.run("experiments.check", "mup", "--config=my/config.py", *adam, cwd=home)
    assert "FLAT under muP" in done.stdout


def test_what_a_module_imports_from_its_package_is_part_of_it(tmp_path, monkeypatch):
    write(tmp_path, scale=FILES["scale"] + "# other\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(named.own_files("my.model:gated")) == ["my.model", "my.scale"]
    assert named.own_files("decoder") == {}
    assert named.digest("adamw") is None


def test_a_config_that_names_nothing_of_ones_own_is_what_it_was():
    assert strict.code_of(Config()) == {}
