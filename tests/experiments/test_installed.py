"""bigjax installed as a wheel and as an editable clone, beside a user's own `configs` and `experiments`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.commands import ROOT, TINY, contents, read, shared_cache

BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"

PACKAGED = [path for top in ("bigjax", "configs", "experiments") for path in (ROOT / top).rglob("*") if path.is_file()]
STUBS = ("bigjax/configs/__init__.py", "bigjax/experiments/__init__.py")

MINE = {
    "configs/__init__.py": "",
    "configs/quickstart.py": "raise RuntimeError('not asked for')",
    "configs/mine.py": """
from bigjax.config import Config, TrainConfig
from bigjax.config.strict import to_config_dict
from . import steps

def get_config():
    return to_config_dict(Config(train=TrainConfig(steps=steps.STEPS)))
""",
    "configs/steps.py": "STEPS = 77",
    "experiments/__init__.py": "raise RuntimeError('not asked for')",
    "experiments/train.py": "raise RuntimeError('not asked for')",
}
"""The folder of a user, whose packages are called as ours are."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A clone without what a build leaves behind."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("bigjax", "configs", "experiments", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def built(source: Path, how: str, to: Path) -> Path:
    """Return the wheel that setuptools builds, as pip has it do."""
    done = subprocess.run([sys.executable, "-c", BUILD, how, str(to)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return built(source, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder of installed packages that holds the wheel, and nothing else of ours, inside somebody's repository."""
    folder = tmp_path_factory.mktemp("site")
    git = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@localhost"]
    for arguments in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message=mine"]):
        subprocess.run([*git, *arguments], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-cache-dir"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", folder, wheel], check=True)
    return folder


@pytest.fixture
def mine(tmp_path) -> Path:
    for name, text in MINE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Run Python as somebody who has one folder of installed packages does; get the exit status and what it said."""
    cache = shared_cache(tmp_path_factory)

    def run(site: Path | str, cwd: Path, *arguments: str) -> tuple[int, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled")}
        environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONWARNINGS": "error", "PYTHONPATH": str(site)}
        done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_wheel_holds_bigjax_alone_and_all_of_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"bigjax", "bigjax-0.1.0.dist-info"}
    paths = [path.relative_to(ROOT).as_posix() for path in PACKAGED if "__pycache__" not in path.parts]
    wanted = {path if path.startswith("bigjax/") else f"bigjax/{path}" for path in paths}
    pictures = {name for name in wanted if name.startswith("bigjax/experiments/studies/") and not name.endswith(".py")}
    assert names - {name for name in names if ".dist-info" in name} == wanted - pictures
    assert "bigjax/configs/presets/llama-8b-v5e-256-fsdp.json" in names
    assert (
        "bigjax = bigjax.__main__:console"
        in zipfile.ZipFile(wheel).read("bigjax-0.1.0.dist-info/entry_points.txt").decode()
    )
    for stub in STUBS:  # in the wheel they are the packages themselves
        assert b"__path__" not in zipfile.ZipFile(wheel).read(stub)


def test_the_command_trains_a_shipped_config_beside_folders_of_the_same_names(call, site, mine):
    status, said = call(site, mine, f"{site}/bin/bigjax", "train", *TINY[1:], "--config=quickstart", "--workdir=run")
    assert status == 0, said
    assert read(mine / "run" / "result.json")["steps"] == 8
    session = read(mine / "run" / "environment.json")["sessions"][0]
    assert session["git"] is None and session["packages"]["bigjax"] == "0.1.0"
    assert Path(session["argv"][0]) == site / "bigjax" / "experiments" / "train.py"


@pytest.mark.parametrize("config", ["quickstart", "copy_task", "presets/llama-8b-v5e-256-fsdp", "sweeps/lr_width"])
def test_shipped_configs_are_found_from_anywhere(call, site, mine, config):
    status, said = call(site, mine, "-m", "bigjax", "train", f"--config={config}", "--print_config")
    assert status == 0 and "fingerprint = " in said, said


def test_the_users_own_config_imports_from_its_own_package(call, site, mine):
    for python in (("-m", "bigjax"), (f"{site}/bin/bigjax",)):
        status, said = call(site, mine, *python, "train", "--config=configs/mine.py", "--print_config")
        assert status == 0 and "train.steps = 77\n" in said, said
    (mine / "elsewhere").mkdir()
    status, said = call(
        site, mine / "elsewhere", "-m", "bigjax", "train", f"--config={mine}/configs/mine.py", "--diff=copy_task"
    )
    assert status == 0 and "train.steps: 77 -> " in said, said


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory) -> Path:
    """A folder of installed packages with what `pip install -e` puts there, read as site-packages are."""
    folder = tmp_path_factory.mktemp("editable")
    zipfile.ZipFile(built(source, "build_editable", folder)).extractall(folder)
    (folder / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(folder)!r})")
    (folder / "bin").mkdir()
    (folder / "bin" / "bigjax").write_text("from bigjax.__main__ import console\nconsole()")
    return folder


def test_an_editable_install_finds_the_clone_from_anywhere(call, source, editable, mine):
    program = "import bigjax.experiments.cli as a, bigjax.configs.sweeps.lr_width as b; print(a.__file__, b.__file__)"
    status, said = call(editable, mine / "configs", "-c", program)
    assert status == 0, said
    assert said.split() == [f"{source}/experiments/cli.py", f"{source}/configs/sweeps/lr_width.py"]
    program = "import importlib.util as u; print([u.find_spec(n) for n in ('experiments', 'configs', 'benchmarks')])"
    assert call(editable, mine / "configs", "-c", program)[1].strip() == "[None, None, None]"
    status, said = call(editable, mine, f"{editable}/bin/bigjax", "train", "--config=quickstart", "--print_config")
    assert status == 0 and "fingerprint = " in said, said


def test_a_fork_of_the_commands_starts_its_own(call, site, tmp_path):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    names = "print(local.TRAIN, resume.LAUNCHER[1])"
    for package in ("experiments", "bigjax.experiments"):
        program = f"from {package}.sweep import local; from {package}.check import resume; {names}"
        said = call(site, tmp_path, "-c", program)[1].split()
        assert said == [f"{package}.train", f"{package}.check.witnessed_train"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("where", ["site", "editable"])
def test_processes_that_commands_start_run_from_anywhere(request, call, where, mine):
    """A sweep's trainers, a group's processes, a check's trainers that are killed, and a plan's compiler."""
    site = request.getfixturevalue(where)
    tiny = (*TINY[1:], "--config.train.steps=4")
    few = "def sweep(add):\n    for lr in (1e-3, 2e-3): add(**{'optim.lr': lr})"
    (mine / "few.py").write_text(f"from bigjax.configs.quickstart import get_config\n{few}")
    commands = [
        ("sweep", "--config=few.py", *tiny, "--processes=2", "--workdir=sweep"),
        ("train", "--config=quickstart", *tiny, "--num_processes=2", "--workdir=two"),
        ("check", "resume", "--config=quickstart", "--meshes=data=2", "--processes=0"),
        ("plan", "--config=quickstart", *tiny, "--topology=cpu:2"),
    ]
    for command in commands if where == "site" else commands[:2]:
        status, said = call(site, mine, "-m", "bigjax", *command)
        assert status == 0, f"{command}\n{said}"
    assert len(list((mine / "sweep").rglob("result.json"))) == 2


def test_nothing_is_written_into_the_clone_by_a_run(source):
    assert not {"runs", "fits"} & {path.partition("/")[0] for path in contents(source)}
