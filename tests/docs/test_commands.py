"""Every command that README.md or a page shows exists, and takes the flags and the config that it is shown with."""

import functools
import importlib.util
import itertools
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from benchmarks.recorded import EXAMPLES, declared
from bigjax import config
from bigjax.config import Config
from bigjax.config.strict import fingerprint, from_dict, to_dict
from bigjax.interop.hf.config import export_config
from bigjax.run.json_files import write_json
from configs import bert, t5
from experiments import config_source
from tests.commands import ROOT, Commands, shared_cache
from tests.docs.pages import all_commands, blocks, command_lines, split_commands

ELSEWHERE = (
    "cd",
    "git",
    "source",
    ".",
    "tensorboard",
    "uv",
    "ls",
    "cat",
    "head",
    "mkdir",
    "cp",
    "sbatch",
    "kubectl",
    "mkdocs",
)
"""Programs of other projects that may be named."""


@functools.cache
def help_of(commands: Commands, words: tuple[str, ...]) -> str:
    return commands.run(*words, "--help").stdout


def module_of(command: list[str]) -> str | None:
    return command[2] if command[0] in ("python", "python3") and command[1:2] == ["-m"] else None


COMMANDS = all_commands()
OURS = [command[2:] for command in COMMANDS if module_of(command) not in (None, "pip", "pytest", "venv")]
"""Module and arguments of every command of this project."""

REFUSED = [
    words[2:]
    for recording in declared().values()
    if recording.status == 2
    for words in split_commands(recording.commands[-1])
]
"""Those that are shown for the error that they end with."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working folder where every run that a command names has been started, and Hugging Face folders are there."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    for name in ("configs", "experiments", "tests"):
        (folder / name).symlink_to(ROOT / name)
    cfg = from_dict(Config, config_source.load(str(ROOT / "configs" / "quickstart.py")))
    for run in re.findall(r"runs/[\w.+/-]+", " ".join(word for command in OURS for word in command)):
        (folder / run).mkdir(parents=True, exist_ok=True)
        write_json(folder / run / "config.json", {"config": to_dict(cfg), "fingerprint": fingerprint(cfg)})
    model = {"activation": "swiglu", "qk_norm": False, "attention": "reference", "layers": "scan"}
    llama = config.replace(cfg, model=model).model
    known = {"MiniLM-L6": bert.model(*bert.SHAPES["minilm"]), "T5-small": t5.model(t5.SHAPES["small"], gated=False)}
    words = [word for command in OURS for word in command]
    pattern = r"--(?:config|workdir)=(?:(?:configs/)?\w+(?:\.py)?:)?hf:(.+)"
    for name in (match[1] for word in words if (match := re.match(pattern, word))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(folder / name / "config.json", export_config(known.get(name, llama))[1])
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


def test_commands_are_found_in_fenced_blocks(tmp_path):
    text = (
        "Run `pytest`.\n```bash\n# one\npip install -e .\nA=1 python -m a.b \\\n  --c='d e' && pytest -q  # two\n```\n"
    )
    text += "```\n$ python -m a.c\nbigjax: run 1\n$ bigjax train -x\n```\n"
    text += "```python\nimport pip\n```\n```console\n$ pytest tests\nbigjax train\n```\n"
    page = tmp_path / "page.md"
    page.write_text(text)
    lines = [line for block in blocks(page) for line in command_lines(block.language, block.text)]
    found = [command for line in lines for command in split_commands(line)]
    assert found == [
        ["pip", "install", "-e", "."],
        ["python", "-m", "a.b", "--c=d e"],
        ["pytest", "-q"],
        ["python", "-m", "a.c"],
        ["python", "-m", "bigjax", "train", "-x"],
        ["pytest", "tests"],
    ]


def test_readme_shows_how_to_install_train_and_test():
    assert [command for command in COMMANDS if "install" in command]
    assert [command for command in OURS if command[:2] == ["bigjax", "train"]]
    assert [command for command in COMMANDS if "pytest" in command]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_program_is_known_and_what_it_names_is_there(command):
    program = module_of(command) or command[0]
    words = command[3:] if module_of(command) else command[1:]
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"(?:\.|bigjax)\[([\w,-]+)\]", " ".join(words))
        assert {extra for names in named for extra in names.split(",")} <= set(extras)
    elif program == "pytest":
        paths = [word.partition("::")[0] for word in words if word.startswith("tests")]
        assert [path for path in paths if not (ROOT / path).exists()] == []
    elif program in ("python", "python3"):
        assert (ROOT / words[0]).is_file(), f"cannot check {' '.join(command)}"
    else:
        assert [program, *words] in OURS or program in (*ELSEWHERE, "venv", "ruff", "pyright"), f"unknown: {command}"


@pytest.mark.sample(15)
@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_every_command_takes_its_flags(commands, folder, words):
    module, *arguments = words
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    assert Path(spec.origin or "").is_relative_to(ROOT)
    shown = help_of(commands, (module, *itertools.takewhile(lambda word: not word.startswith("-"), arguments)))
    for word in arguments:
        flag = word.partition("=")[0]
        if flag.startswith("--") and not flag.startswith(("--config.", "--noconfig.")):
            assert re.search(rf"{flag}(?![\w-])", shown), f"{module} --help does not list {flag}"
    if words in REFUSED:
        return
    has_config = any(word.startswith(("--config=", "--workdir=")) for word in arguments)
    if "--print_config" in shown and has_config and "--help" not in arguments:
        # Reads the config, its overrides and every flag, and stops there.
        assert "fingerprint" in commands.run(module, *arguments, "--print_config", cwd=folder).stdout
    else:
        # A parser that reads from left to right refuses a wrong value before it comes to --help.
        commands.run(module, *arguments, "--help", cwd=folder)
