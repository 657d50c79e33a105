"""experiments.config_source: config files and run folders, sound or broken."""

import errno
import json

import pytest

from bigjax.config import Config, replace, strict
from bigjax.errors import UserError
from bigjax.run.folder import RunFolder
from experiments import config_source

CONFIG_FILE = """
from bigjax.config import Config, TrainConfig
from bigjax.config.strict import to_config_dict

def get_config(arg=None):
    return to_config_dict(Config(train=TrainConfig(steps=int(arg or 1))))
"""


def test_a_config_file_takes_an_optional_argument(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(CONFIG_FILE)
    assert config_source.load(str(path)).train.steps == 1
    assert config_source.load(f"{path}:7").train.steps == 7
    assert config_source.load(str(path)).is_locked


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gtp.py", None, "there is no config file '{}': did you mean {}/gpt.py?"),
        ("a.py", "x = 1", "{} defines no get_config(): it is not a config file"),
        ("a.py:b", "def get_config(): pass", "{0}:b: {0} takes no argument: use {0}"),
        ("a.py", "def get_config(arg): pass", "{0}: {0} needs an argument: use {0}:ARG"),
        ("a.py", "def get_config(): return {}", "{}: get_config() returned a dict, expected a ConfigDict"),
        ("a.py", "def get_config(): raise ValueError('no such thing')", "{}: no such thing"),
        ("a.txt", "", "{} is not a Python file, so it cannot be a config file"),
        (".", None, "{} is not the folder of a run: it has no config.json"),
    ],
)
def test_a_wrong_source_is_explained(tmp_path, name, text, message):
    (tmp_path / "gpt.py").write_text("")
    path = tmp_path / name.partition(":")[0]
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        config_source.load(str(tmp_path / name))
    assert str(caught.value) == message.format(path, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.lrr": 3}, "optim.lrr is not a field of the config: did you mean optim.lr?"),
        ({"optim.lr": True}, "optim.lr=True is a bool, expected a float above 0"),
        ({"optim": 3}, "optim is a section, not a field: name the fields in it one by one"),
    ],
)
def test_a_wrong_change_of_a_preset_is_named(tmp_path, changes, message):
    (tmp_path / "a.py").write_text(CONFIG_FILE)
    path = tmp_path / "preset.json"
    path.write_text(json.dumps({"config": str(tmp_path / "a.py"), "changes": {"optim.grad_clip": None, "optim.lr": 1}}))
    assert (config_source.load(str(path)).optim.lr, config_source.load(str(path)).optim.grad_clip) == (1.0, None)
    path.write_text(json.dumps({"config": str(tmp_path / "a.py"), "changes": changes}))
    with pytest.raises(UserError) as caught:
        config_source.load(str(path))
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\ndef get_config(): return {}['a']", "2: KeyError: 'a'"),
        ("x = 1\n\ny = 1 / 0", "3: ZeroDivisionError: division by zero"),
        ("x = 1\nif x\n  y = 2", "2: SyntaxError: expected ':'"),
        ("import json, no_such_module", "1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import json\njson.loads(\n'{')", "2: JSONDecodeError: Expecting property name enclosed in double quotes"),
        ("open('/none')", "1: FileNotFoundError: [Errno 2] No such file or directory: '/none'"),
        ("def get_config():\n    assert 1 == 2", "2: AssertionError"),
    ],
)
def test_a_bug_in_a_config_file_names_its_line(tmp_path, text, reason):
    path = tmp_path / "a.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        config_source.load(str(path))
    assert str(caught.value).startswith(f"{path}:{reason}")
    assert str(caught.value).endswith(" (--debug shows the traceback)") and "\n" not in str(caught.value)


def test_a_misspelt_field_in_a_config_file_gets_the_nearest(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(CONFIG_FILE + "\ndef get_config():\n    c = to_config_dict(Config())\n    c.optim.lrr = 3\n")
    with pytest.raises(UserError) as caught:
        config_source.load(str(path))
    assert str(caught.value) == f"{path}:10: lrr is not a field of the config: did you mean optim.lr?"


def test_a_bug_in_a_file_given_by_a_relative_path_or_in_what_it_imports_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base_of_a.py").write_text("\ndef get_config(): return 1 / 0")
    (tmp_path / "a.py").write_text("from base_of_a import get_config")
    (tmp_path / "b.py").write_text("from base_of_a import get_config\nget_config()")
    with pytest.raises(UserError, match=r"^a\.py: .*/base_of_a\.py:2: ZeroDivisionError"):
        config_source.load("a.py")
    with pytest.raises(UserError, match=r"^b\.py:2: ZeroDivisionError"):
        config_source.load("b.py")


def test_a_bug_in_what_adds_points_or_says_what_to_search_names_its_line(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("def sweep(add):\n    for lr in 1e-3:\n        add(lr=lr)\n\ndef space():\n    return lr")
    sweep = config_source.load_sweep(str(path))
    with pytest.raises(UserError, match=r"a\.py:2: TypeError: 'float' object is not iterable \(--debug"):
        sweep(None)
    with pytest.raises(UserError, match=r"a\.py:6: NameError: name 'lr' is not defined \(--debug"):
        config_source.load_space(f"{path}:d12")


def test_a_sweep_takes_what_adds_points(tmp_path):
    (tmp_path / "a.py").write_text("def sweep(): pass")
    with pytest.raises(UserError, match=r"defines no sweep\(add\).*: its sweep takes something else"):
        config_source.load_sweep(str(tmp_path / "a.py"))


def test_a_config_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.py"
    path.write_text(CONFIG_FILE)

    def refuse(loader, name):
        raise PermissionError(errno.EACCES, "Permission denied", name)

    # As root, whom no permission stops: where Python's own loader opens the file.
    monkeypatch.setattr("importlib.machinery.SourceFileLoader.get_data", refuse)
    with pytest.raises(UserError, match=r"a\.py cannot be read: Permission denied"):
        config_source.load(str(path))


def test_a_run_folder_gives_its_config(tmp_path, capsys):
    cfg = replace(Config(), optim={"lr": 0.5, "grad_clip": None})
    record = {"config": strict.to_dict(cfg), "fingerprint": strict.fingerprint(cfg)}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert RunFolder(tmp_path).load_config() == cfg
    assert strict.from_dict(Config, config_source.load(str(tmp_path))) == cfg
    assert capsys.readouterr().err == ""


def test_a_run_of_another_schema_is_noticed(tmp_path, capsys):
    record = {"config": {"train": {"steps": 5}}, "fingerprint": "0123456789abcdef"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert RunFolder(tmp_path).load_config().train.steps == 5
    assert "config.json records fingerprint 0123456789abcdef, this version of the schema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"config": {"optim": {"rat": 1}}}', "does not fit this version of the schema:\noptim.rat is not a field"),
        ("{", "cannot be read: JSONDecodeError"),
        ("{}", "cannot be read: KeyError"),
        ("[]", "cannot be read: TypeError"),
    ],
)
def test_a_broken_record_is_explained(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path).load_config()
    assert message in str(caught.value)
