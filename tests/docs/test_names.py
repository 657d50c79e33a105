"""What the documentation names in its sentences is there: files, modules and what is in them, fields of the config."""

import dataclasses
import importlib
import re

import pytest

from bigjax.config import Config, named
from tests.commands import ROOT
from tests.docs.pages import FENCE, PAGES

CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PLACE = re.compile(r"(?:bigjax|experiments|configs|benchmarks|tests|docs)/[\w./-]*")
DOTTED = re.compile(r"bigjax(?:\.\w+)+")
FIELD = re.compile(r"(?:model|data|train|optim|mesh|checkpoint|guard|log)(?:\.[a-z]\w*)+")


def config_fields() -> dict[str, tuple[type, str]]:
    """Return the class and name of every field of a config, and of each family and task, by dotted path."""
    found = {}

    def walk(cls: type, prefix: str) -> None:
        for field in dataclasses.fields(cls):
            inner = field.default_factory if isinstance(field.default_factory, type) else None
            if inner is not None and dataclasses.is_dataclass(inner):
                walk(inner, f"{prefix}{field.name}.")
            else:
                found[f"{prefix}{field.name}"] = (cls, field.name)

    walk(Config, "")
    for name, place in named.FAMILIES.items():
        walk(named.load("model.family", name, {name: place}).fields, f"model.{name}.")
    for name, place in named.TASKS.items():
        walk(named.load("train.objective", name, {name: place}).fields, "task.")
    return found


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one or of a class in it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


FIELDS = {*config_fields(), "model.gated.strength"}
"""Those of bigjax, and of the family in docs/examples/my/."""

SECTIONS = {name.rpartition(".")[0] for name in FIELDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_sentence_names_is_there(page):
    said = CODE.findall(FENCE.sub("", page.read_text()))
    places = [name for name in said if PLACE.fullmatch(name)]
    assert [name for name in places if not (ROOT / name).exists()] == []
    assert [name for name in said if DOTTED.fullmatch(name) and not is_there(name)] == []
    # `FIELD=VALUE` and `--config.FIELD` name a field, too.
    fields = [name.partition("=")[0].removeprefix("--config.") for name in said if not name.endswith((".py", ".json"))]
    fields = [name for name in fields if FIELD.fullmatch(name)]
    assert [name for name in fields if name not in FIELDS and name not in SECTIONS] == []
