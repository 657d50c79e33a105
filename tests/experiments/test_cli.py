"""experiments.cli: what a user sees on the command line, right or wrong."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from bigjax.config import Config, strict
from bigjax.errors import ConfigError, UserError
from experiments import cli

ROOT = Path(__file__).resolve().parents[2]
GPT = f"--config={ROOT}/configs/gpt.py:d12"
COMMAND = '''
"""Prints the learning rate.

It does nothing else.
"""

import sys

from absl import flags

from experiments import cli


def define_flags(flag_values):
    flags.DEFINE_string("workdir", None, "folder that the run writes", flag_values=flag_values)


def run(flag_values):
    if flag_values.workdir == "bug":
        raise RuntimeError("a bug")
    print(cli.load_config(flag_values.config).optim.lr, "jax" in sys.modules)


if __name__ == "__main__":
    cli.main(run, doc=__doc__, define_flags=define_flags, examples=["python -m command --config=configs/gpt.py:d12"])
'''


def define_flags(flag_values):
    flags.DEFINE_string("workdir", None, "folder that the run writes", flag_values=flag_values)
    flags.DEFINE_integer("count", 3, "how many", flag_values=flag_values)


def parse(*argv: str) -> Config:
    """Run a command in this process and return the config it resolves."""
    seen = []
    cli.main(
        lambda flag_values: seen.append(cli.load_config(flag_values.config)),
        doc="Resolve.",
        define_flags=define_flags,
        argv=["command", *argv],
    )
    return seen[0]


def fail(capsys, run, *argv: str, **kwargs) -> str:
    """Run a command that must end in a user error, and return its message."""
    with pytest.raises(SystemExit) as caught:
        cli.main(run, doc="Fail.", define_flags=define_flags, argv=["command", *argv], **kwargs)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    return captured.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def command(tmp_path):
    """Run the command above in a process of its own."""
    (tmp_path / "command.py").write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "error"}

    def call(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "command", *argv], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    return call


def test_help_is_the_docstring_then_the_flags_then_examples(command):
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Prints the learning rate.\n"
        "\n"
        "It does nothing else.\n"
        "\n"
        "Flags:\n"
        "  --config=FILE[:ARG]           config file, or the name of a shipped one, and its argument; the folder of a "
        "run, or hf:PATH\n"
        "  --config.SECTION.FIELD=VALUE  change one field; None switches off what may be off\n"
        "  --workdir=VALUE               folder that the run writes\n"
        "  --debug                       show the traceback of an error\n"
        "  --help                        show this help\n"
        "  --print_config                print the resolved config and stop\n"
        "  --diff=VALUE                  print how another config differs and stop\n"
        "\n"
        "Examples:\n"
        "  python -m command --config=configs/gpt.py:d12\n"
    )


def test_a_command_runs_without_importing_jax(command):
    done = command("--config=configs/gpt.py:d12", "--config.optim.lr=1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0 False\n", "")


def test_a_user_error_is_one_message_and_status_2(command):
    done = command("--config=configs/gpt.py:d99")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: configs/gpt.py:d99: there is no size 'd99', only d12, d24, d36, d48, gpt2-small"
    )
    assert done.stderr.count("\n") == 1


def test_debug_adds_the_traceback(command):
    done = command("--config=configs/gpt.py:d99", "--debug")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert "error: configs/gpt.py:d99: there is no size 'd99'" in done.stderr


def test_a_bug_shows_its_traceback_and_status_1(command):
    done = command("--workdir=bug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: a bug\n")


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--config.optim.lr=1"], "optim.lr", 1.0),
        (["--config.optim.lr", "3e-4"], "optim.lr", 3e-4),
        (["--config.optim.lr=1", "--config.optim.lr=2"], "optim.lr", 2.0),
        (["--config.optim.grad_clip=None"], "optim.grad_clip", None),
        (["--config.optim.grad_clip", "None"], "optim.grad_clip", None),
        (["--config.optim.grad_clip=None", "--config.optim.grad_clip=2"], "optim.grad_clip", 2.0),
        (["--config.optim.grad_clip=2", "--config.optim.grad_clip=None"], "optim.grad_clip", None),
        (["--config.optim.ema_decay=0.99"], "optim.ema_decay", 0.99),
        (["--config.model.sliding_window=128"], "model.sliding_window", 128),
        (["--config.init_from=runs/a"], "init_from", "runs/a"),
        (["--config.model.qk_norm"], "model.qk_norm", True),
        (["--noconfig.model.tie_embeddings"], "model.tie_embeddings", False),
        (["--config.model.tie_embeddings=false"], "model.tie_embeddings", False),
        (["--config.data.sources=text:/a/*.txt"], "data.sources", ["text:/a/*.txt"]),
        (["--config.data.sources=a", "--config.data.sources=b"], "data.sources", ["a", "b"]),
        (["--config.data.sources=('a', 'b')", "--config.data.weights=1,2"], "data.weights", [1.0, 2.0]),
        (["--config.model.d_model=384"], "model.d_ff", 1536),
    ],
)
def test_an_override_changes_its_field(argv, path, value):
    leaves = {leaf.path: leaf.value for leaf in strict.leaves(parse(GPT, *argv))}
    assert leaves[path] == value
    assert type(leaves[path]) is type(value)


def test_overrides_may_come_before_the_config():
    assert parse("--config.optim.lr=2", GPT).optim.lr == 2.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([GPT, "--config.optim.lrr=3"], "--config.optim.lrr is not a field of the config: did you mean optim.lr?"),
        ([GPT, "--config.train.lr=3"], "--config.train.lr is not a field of the config: did you mean optim.lr?"),
        ([GPT, "--config.optim.lrr=None"], "--config.optim.lrr is not a field of the config: did you mean optim.lr?"),
        ([GPT, "--config.optim.lr=abc"], "--config.optim.lr=abc is not a float above 0"),
        ([GPT, "--config.train.steps=1e3"], "--config.train.steps=1e3 is not an int at least 1"),
        ([GPT, "--config.model.qk_norm=maybe"], "--config.model.qk_norm=maybe is not a bool"),
        ([GPT, "--config.optim.lr"], "--config.optim.lr= is not a float above 0"),
        ([GPT, "--config.optim.lr=None"], "optim.lr=None is not allowed, expected a float above 0"),
        ([GPT, "--config.optim.lr=-1"], "optim.lr=-1.0 is out of bounds, expected a float above 0"),
        ([GPT, "--config.data.sources=1"], "data.sources[0]=1 is an int, expected a str"),
        (
            [GPT, "--config.optim={'lr': 3}"],
            "--config.optim is a section: set its fields one by one, e.g. --config.optim.name=...",
        ),
        (
            [GPT, "--config.train.microbatches=3"],
            "train.global_batch_size=512 is not divisible by train.microbatches=3: set train.microbatches=1",
        ),
        (
            [GPT, "--config.data.sources=shakespeare,text:*.txt"],
            "--config.data.sources=shakespeare,text:*.txt is not a tuple of str: repeat the flag, or write a "
            "Python tuple",
        ),
        (["--config.optim.lr=3"], "--config.optim.lr changes a config, but --config=FILE[:ARG] is missing"),
        ([], "--config=FILE[:ARG] is missing, e.g. --config=gpt:d12"),
        (
            ["--config="],
            "a config is missing: give FILE[:ARG], the name of a shipped one, the folder of a run, or hf:PATH",
        ),
        ([GPT, "--workdri=x"], "unknown flag --workdri: did you mean --workdir?"),
        (["--cofnig=x"], "unknown flag --cofnig: did you mean --config?"),
        ([GPT, "--zzzz"], "unknown flag --zzzz: --help lists the flags"),
        ([GPT, "--count=x"], "--count=x: invalid literal for int() with base 10: 'x'"),
        ([GPT, "--workdir"], "Missing value for flag --workdir"),
        ([GPT, "runs/a"], "unexpected argument 'runs/a': every argument is a flag, --NAME=VALUE"),
    ],
)
def test_a_wrong_command_line_is_explained(capsys, argv, message):
    assert fail(capsys, lambda flag_values: cli.load_config(flag_values.config) and None, *argv) == message


def test_a_field_that_a_config_leaves_out_cannot_be_set(capsys, tmp_path):
    path = tmp_path / "a.py"
    path.write_text("import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'optim': {'lr': 1.0}})")
    assert parse(f"--config={path}", "--config.optim.lr=2").optim.lr == 2.0
    assert fail(capsys, lambda _: None, f"--config={path}", "--config.train.steps=1") == (
        "train.steps is missing from the config, so no flag can set it: let get_config build it with "
        "strict.to_config_dict"
    )


@pytest.mark.parametrize("error", [UserError, ConfigError])
def test_a_user_error_while_running_ends_like_one_in_parsing(capsys, error):
    def run(flag_values):
        raise error("the mesh has no room")

    assert fail(capsys, run, config=False) == "the mesh has no room"


def test_a_file_that_the_user_may_not_use_is_named(capsys):
    def run(flag_values):
        raise PermissionError(errno.EACCES, "Permission denied", "theirs/config.json")

    assert fail(capsys, run, config=False) == "theirs/config.json: Permission denied"


def test_a_full_disk_is_one_sentence_and_other_errors_of_the_system_are_bugs(capsys):
    def run(flag_values):
        with open("/dev/full", "w") as file:  # noqa: PTH123 - what any library may do
            file.write("a result")

    assert fail(capsys, run, config=False) == "No space left on device"

    def wrong(flag_values):
        raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(wrong, doc="", config=False, argv=["command"])


def test_the_status_is_what_run_returns():
    cli.main(lambda _: 0, doc="", config=False, argv=["command"])
    with pytest.raises(SystemExit) as caught:
        cli.main(lambda _: 1, doc="", config=False, argv=["command"])
    assert caught.value.code == 1


def test_a_command_without_config_does_not_take_one(capsys):
    assert fail(capsys, lambda _: None, GPT, config=False).startswith("unknown flag --config")


def test_required_names_the_flag(capsys):
    message = fail(capsys, lambda flag_values: cli.required(flag_values, "workdir"), config=False)
    assert message == "--workdir is missing: folder that the run writes"


def test_print_config(command):
    done = command("--config=configs/gpt.py:d12", "--config.optim.lr=2e-3", "--print_config")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "optim.lr = 0.002" in lines
    assert "model.d_ff = 3072" in lines
    assert [line.split() for line in lines if line.startswith("mesh.tensor ")] == [
        ["mesh.tensor", "=", "1", "#", "plumbing"]
    ]
    assert lines[-1] == f"fingerprint = {strict.fingerprint(parse(GPT, '--config.optim.lr=2e-3'))}"
    assert len(lines) == len(strict.leaves(Config())) + 1


def write_run(folder: Path, *argv: str) -> Config:
    cfg = parse(GPT, *argv)
    folder.mkdir()
    record = {"config": strict.to_dict(cfg), "fingerprint": strict.fingerprint(cfg)}
    (folder / "config.json").write_text(json.dumps(record))
    return cfg


def test_diff_with_a_run(capsys, tmp_path):
    ran = write_run(tmp_path / "run", "--config.optim.lr=0.5", "--config.mesh.tensor=2")
    cli.main(print, doc="", argv=["command", GPT, f"--diff={tmp_path}/run"])
    spec = GPT.partition("=")[2]
    width = max(len(spec), len(f"{tmp_path}/run"))
    assert capsys.readouterr().out.splitlines() == [
        "maths     optim.lr: 0.0006 -> 0.5",
        "plumbing  mesh.tensor: 1 -> 2",
        f"fingerprint of {spec:<{width}} = {strict.fingerprint(parse(GPT))}",
        f"fingerprint of {f'{tmp_path}/run':<{width}} = {strict.fingerprint(ran)}",
    ]


def test_a_run_can_be_the_config_and_be_overridden(capsys, tmp_path):
    ran = write_run(tmp_path / "run", "--config.optim.lr=0.5", "--config.optim.grad_clip=None")
    assert parse(f"--config={tmp_path}/run") == ran
    changed = parse(f"--config={tmp_path}/run", "--config.optim.grad_clip=2")
    assert strict.diff(ran, changed) == [("optim.grad_clip", None, 2.0, False)]
    cli.main(print, doc="", argv=["command", f"--config={tmp_path}/run", f"--diff={tmp_path}/run"])
    assert capsys.readouterr().out.startswith("no field differs\n")
