"""What a config can name: what bigjax brings by a short name, the user's own as `module.path:NAME`.

A new family, task or optimizer of bigjax is one file and one line here. The user's own is one file and no line: its
module is found as Python finds it, from the folder that the command is typed in.
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bigjax.errors import ConfigError

FAMILIES = {
    "decoder": "bigjax.models.decoder:FAMILY",
    "encoder": "bigjax.models.encoder:FAMILY",
    "encdec": "bigjax.models.encdec:FAMILY",
    "rnn": "bigjax.models.rnn:FAMILY",
}
"""`model.family` -> where its `models.Family` is."""

TASKS = {
    "causal_lm": "bigjax.tasks.causal_lm:TASK",
    "masked_lm": "bigjax.tasks.masked_lm:TASK",
    "masked_lm_next_sentence": "bigjax.tasks.masked_lm_next_sentence:TASK",
    "classification": "bigjax.tasks.classification:TASK",
    "token_classification": "bigjax.tasks.token_classification:TASK",
    "question_answering": "bigjax.tasks.question_answering:TASK",
    "seq2seq": "bigjax.tasks.seq2seq:TASK",
    "span_corruption": "bigjax.tasks.span_corruption:TASK",
    "prefix_lm": "bigjax.tasks.prefix_lm:TASK",
}
"""`train.objective` -> where its `tasks.Task` is."""


def load(field: str, name: str, known: Mapping[str, str]) -> Any:
    """Return what a field names, one of `known` or the user's own as `module.path:NAME`.

    Args:
      field: that has the name, as `model.family`, for messages.

    Raises:
      ConfigError: there is no such name, module, or attribute, or the module fails when it is imported.
    """
    if name not in known and ":" not in name:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{field}={name!r} is not one of {', '.join(map(repr, known))}, or your own as 'module.path:NAME'{hint}"
        )
    return _imported(field, name, known.get(name, name))


@cache
def _imported(field: str, name: str, place: str) -> Any:
    module_name, _, attribute = place.partition(":")
    here = str(Path.cwd())
    if name == place and not {"", here} & set(sys.path):
        sys.path.append(here)  # a console command has its own folder there instead
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or " "):  # it is there, and what it imports is not
            raise ConfigError(
                f"{field}={name!r}: {module_name} imports {error.name}, which is not installed"
            ) from error
        raise ConfigError(
            f"{field}={name!r}: there is no module {module_name} here ({Path.cwd()}) or on PYTHONPATH"
        ) from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(f"{field}={name!r}: {module_name} cannot be imported: {said}") from error
    if not hasattr(module, attribute):
        own = [each for each in vars(module) if not each.startswith("_")]
        near = difflib.get_close_matches(attribute, own, n=1)
        hint = f": did you mean {module_name}:{near[0]}?" if near else ""
        raise ConfigError(f"{field}={name!r}: {module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)


def section(name: str) -> str:
    """Return the name of the section in which what `name` names has fields of its own: `NAME` of `module.path:NAME`."""
    return name.rpartition(":")[2]


def source_file(name: str) -> Path | None:
    """Return the file that defines the user's own `module.path:NAME`, None for what bigjax brings."""
    module, separator, _ = name.partition(":")
    if not separator:
        return None
    found = sys.modules.get(module)
    origin = getattr(found, "__file__", None) if found else None
    return Path(origin) if origin else None


def digest(name: str) -> str | None:
    """Return the sha256 of the file that defines the user's own `module.path:NAME`, None for what bigjax brings."""
    file = source_file(name)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else None
