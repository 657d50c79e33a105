"""`bigjax COMMAND`, and configs by name: what is found, what comes first, and one sentence for what is not there."""

import importlib
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import bigjax
from bigjax import __main__ as command
from bigjax import version
from bigjax.config import shipped
from bigjax.errors import UserError
from experiments import cli, config_source
from experiments.config_package import package_of
from tests.commands import ROOT

COMMANDS = ["check", "evaluate", "export", "fit", "generate", "plan", "report", "sweep", "train"]

FILE = """
from bigjax.config import Config, TrainConfig
from bigjax.config.strict import to_config_dict

def get_config():
    return to_config_dict(Config(train=TrainConfig(steps=STEPS)))
"""


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_it_lists_every_command_with_one_line(arguments, capsys):
    assert command.main(["bigjax", *arguments]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= {name for name, _ in lines}
    assert all(len(text) > 10 and text[0].isupper() and not text.endswith(".") for _, text in lines)
    runnable = {path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text()}
    packages = {path.parent.name for path in (ROOT / "experiments").glob("*/__main__.py")}
    assert {name for name, _ in lines} == runnable | packages


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trian", "there is no command 'trian': did you mean train?"),
        ("sweeps", "there is no command 'sweeps': did you mean sweep?"),
        ("cli", "there is no command 'cli': bigjax --help lists them"),  # a file that is no command
        ("--config=quickstart", "there is no command '--config=quickstart': bigjax --help lists them"),
        ("x" * 1000, f"there is no command '{'x' * 27}...{'x' * 28}': bigjax --help lists them"),
    ],
)
def test_an_unknown_command_gets_the_nearest(name, said, capsys):
    assert command.main(["bigjax", name]) == 2
    assert capsys.readouterr() == ("", f"error: {said}\n")


def test_it_says_its_version(capsys):
    assert command.main(["bigjax", "--version"]) == 0
    assert capsys.readouterr().out == f"bigjax {bigjax.__version__}\n"
    assert re.search(rf'^version = "{re.escape(bigjax.__version__)}"$', (ROOT / "pyproject.toml").read_text(), re.M)


def test_the_version_is_that_of_the_installation_unless_there_is_a_clone(tmp_path, monkeypatch):
    (tmp_path / "bigjax").mkdir()
    monkeypatch.setattr(version, "__file__", str(tmp_path / "bigjax" / "version.py"))
    monkeypatch.setattr(metadata, "version", lambda name: f"{name} installed")
    assert version._version() == "bigjax installed"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "9"\n')
    assert version._version() == "bigjax installed"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "bigjax"\nversion = "9"\n')
    assert version._version() == "9"
    (tmp_path / "pyproject.toml").unlink()

    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    assert version._version() == "0+unknown"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_the_module_of_that_name(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bigjax"])
    assert command.main(["bigjax", name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"bigjax {name} --" in said or name == "check"
    assert "experiments." not in said.replace("bigjax.experiments", "")
    package = (ROOT / "experiments" / name).is_dir()
    doc = importlib.import_module(f"experiments.{name}{'.__main__' if package else ''}").__doc__
    assert (doc or "").strip().partition("\n")[0] in said


@pytest.mark.parametrize("name", ["quickstart", "llama:8b", "sweeps/lr_width", "copy_task"])
def test_a_shipped_config_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    file, colon, argument = name.partition(":")
    by_path = config_source.load(f"{ROOT}/configs/{file}.py{colon}{argument}")
    monkeypatch.chdir(tmp_path)
    assert config_source.load(name) == by_path
    assert cli.default_workdir(["train", f"--config={name}"]) == f"runs/{Path(file).name}{colon and '-'}{argument}"


def test_a_preset_is_found_by_name_and_its_config_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_source.load("presets/llama-8b-v5e-256-fsdp")
    assert (config.mesh.fsdp, config.model.attention) == (256, "splash")
    assert callable(config_source.load_sweep("sweeps/mup_transfer"))


def test_what_is_there_comes_before_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()  # a folder of that name is no run
    assert shipped.located("quickstart") == f"{ROOT}/configs/quickstart.py"
    Path("quickstart", "config.json").write_text("{}")
    assert shipped.located("quickstart") == "quickstart"
    Path("gpt").write_text("")
    assert shipped.located("gpt:d12") == "gpt:d12"
    for text in ("gpt.py", "../configs/gpt", "/gpt", "./llama", "hf:llama", "", "__init__", "sweeps/__init__"):
        assert shipped.located(text) == text
    Path("configs").mkdir()
    Path("configs/quickstart.py").write_text(FILE.replace("STEPS", "7"))
    assert config_source.load("configs/quickstart.py").train.steps == 7


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("quikstart", "quickstart"),
        ("lama:8b", "llama"),
        ("sweeps/lr_widht", "sweeps/lr_width"),
        ("configs/quickstart.py", "quickstart"),
        ("configs/llama.py:8b", "llama"),
        ("presets/llama-8b-v5e-256-fsd", "presets/llama-8b-v5e-256-fsdp"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(text, near, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^there is no config file '[^']*': did you mean {re.escape(near)}\?$"):
        config_source.load(text)


def test_a_config_imports_from_its_own_package_whatever_else_is_called_so(tmp_path, monkeypatch):
    for owner, steps in (("one", 1), ("two", 2)):
        folder = tmp_path / owner / "configs"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "base.py").write_text(f"STEPS = {steps}")
        (folder / "mine.py").write_text(f"from .base import STEPS\n{FILE}")
    loaded = [config_source.load(str(tmp_path / owner / "configs" / "mine.py")) for owner in ("one", "two", "one")]
    assert [config.train.steps for config in loaded] == [1, 2, 1]
    assert package_of(ROOT / "configs" / "sweeps" / "lr_width.py") == "configs.sweeps"
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    assert package_of(ROOT / "configs" / "gpt.py") == "bigjax.configs"
    monkeypatch.syspath_prepend(tmp_path / "two")  # where configs is another's, ours are inside bigjax
    assert package_of(ROOT / "configs" / "gpt.py") == "bigjax.configs"
    assert package_of(tmp_path / "two" / "configs" / "mine.py") == "configs"
    assert config_source.load("copy_task").train.steps > 0


def test_a_config_copied_out_of_its_package_is_told_what_to_import(tmp_path):
    copied = tmp_path / "mine.py"
    copied.write_text((ROOT / "configs" / "copy_task.py").read_text())
    with pytest.raises(UserError, match=r"mine\.py:\d+: ImportError: .* is no package .*: import from bigjax\.configs"):
        config_source.load(str(copied))
    copied.write_text(copied.read_text().replace("from . import", "from bigjax.configs import"))
    assert config_source.load(str(copied)) == config_source.load("copy_task")
