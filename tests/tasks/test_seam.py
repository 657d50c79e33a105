"""One seam: a task is one file and one line, and no other place in the library knows its name."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, named
from bigjax.errors import ConfigError
from bigjax.tasks import Task, named_task, random_batch
from tests.commands import ROOT

HEADS = {"classification", "token_classification", "question_answering", "regression"}
"""Names of tasks that are names of heads, too, which the files of models and of their formats know."""

OF_HEADS = tuple(f"bigjax/{name}" for name in ("config/", "models/", "interop/", "preflight/", "tasks/"))


def strings(path: Path) -> list[str]:
    """Return the strings of a file but for its docstrings, and pieces of its f-strings."""
    tree = ast.parse(path.read_text())
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said
    ]


def test_no_other_place_knows_the_names_of_tasks():
    word = re.compile(rf"\b({'|'.join(sorted(named.TASKS, key=len, reverse=True))})\b")
    places = {}
    for path in (*(ROOT / "bigjax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        found = {match for text in strings(path) for match in word.findall(text)}
        found -= HEADS if name.startswith(OF_HEADS) and not name.endswith("named.py") else set()
        if found:
            places[name] = found
    # The line in the list of tasks; the default of `train.objective`; a function in the task's own room.
    own = {name: found for name, found in places.items() if not name.startswith("bigjax/tasks/")}
    assert own == {"bigjax/config/named.py": set(named.TASKS), "bigjax/config/run.py": {"causal_lm"}}
    for name, found in places.items():
        if name.startswith("bigjax/tasks/"):
            assert found <= {"causal_lm", "masked_lm", "masked_lm_next_sentence", "seq2seq"}, name  # names of functions


@pytest.mark.parametrize("name", named.TASKS)
def test_a_task_declares_itself(name):
    task = named.load("train.objective", name, named.TASKS)
    assert isinstance(task, Task) and named.TASKS[name] == f"bigjax.tasks.{name}:TASK"
    assert set(task.families) <= set(named.FAMILIES) and "loss" in task.metrics
    assert task.predict is not None or task.report is None


OWN = '''
"""A task of the user's own: the first token of every row counts twice."""
import dataclasses
import jax.numpy as jnp
from bigjax.tasks import named_task, Task
from bigjax.tasks.causal_lm import TASK as PLAIN


def loss(model, params, batch, cfg, *, layout, key=None):
    weights = batch["weights"] * jnp.where(jnp.arange(batch["weights"].shape[1]) == 0, 2.0, 1.0)
    return PLAIN.loss(model, params, {**batch, "weights": weights}, cfg, layout=layout, key=key)


def problems(cfg):
    if cfg.data.seq_len < 4:
        yield f"data.seq_len={cfg.data.seq_len} is short for my task"


FIRST = dataclasses.replace(PLAIN, loss=loss, problems=problems, carried_loss=None)
NOTHING = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_first_task.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_first_task:FIRST"


def small(objective: str, **data) -> Config:
    model = ModelConfig(vocab_size=64, num_layers=1, d_model=16, num_heads=2, d_ff=32, max_seq_len=16)
    return Config(model, DataConfig(**{"seq_len": 8, **data}), TrainConfig(objective=objective, global_batch_size=4))


def test_a_task_of_the_users_own_is_one_file(own):
    cfg = small(own)
    assert named_task(cfg).problems(cfg) is not None
    batch = random_batch(cfg)
    assert np.array_equal(batch["tokens"], random_batch(small("causal_lm"))["tokens"])
    with pytest.raises(ConfigError, match=r"data\.seq_len=2 is short for my task"):
        small(own, seq_len=2)
    with pytest.raises(ConfigError, match=r"data\.order='contiguous' needs train.objective='causal_lm', not 'my_first"):
        small(own, order="contiguous")
    with pytest.raises(ConfigError, match=r"'my_first_task:NOTHING' is a int, not a bigjax.tasks.Task"):
        small("my_first_task:NOTHING")


def test_a_wrong_name_says_which_was_meant():
    with pytest.raises(ConfigError, match=r"'masked_llm' is not one of 'causal_lm', .*: did you mean 'masked_lm'\?"):
        small("masked_llm")
    with pytest.raises(ConfigError, match="there is no module no_such_module here"):
        small("no_such_module:TASK")


def test_tasks_check_a_config_without_jax():
    """A command shows a config, or refuses it, at once."""
    names = json.dumps(list(named.TASKS))
    code = f"import sys; from bigjax.config import named\nfor n in {names}: named.load('f', n, named.TASKS)"
    code = f"{code}\nprint('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_fields_are_those_of_the_sketch():
    needed = {field.name for field in dataclasses.fields(Task) if field.default is dataclasses.MISSING}
    assert needed == {"families", "columns", "rows", "example", "loss"}
