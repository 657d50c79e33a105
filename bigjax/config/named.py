"""What a config can name: what bigjax brings by a short name, the user's own as `module.path:NAME`.

A new family, task or optimizer of bigjax is one file and one line here. The user's own is one file and no line: its
module is found as Python finds it, from the folder that the command is typed in.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bigjax.errors import ConfigError

FAMILIES = {
    "decoder": "bigjax.models.family:DECODER",
    "encoder": "bigjax.models.family:ENCODER",
    "encdec": "bigjax.models.encdec:FAMILY",
    "rnn": "bigjax.models.rnn:FAMILY",
    "mlp": "bigjax.models.mlp:FAMILY",
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
    "regression": "bigjax.tasks.regression:TASK",
}
"""`train.objective` -> where its `tasks.Task` is."""

OPTIMIZERS = {
    "sgd": "bigjax.train.optimizers:sgd",
    "adam": "bigjax.train.optimizers:adam",
    "adamw": "bigjax.train.optimizers:adamw",
    "adafactor": "bigjax.train.optimizers:adafactor",
    "lion": "bigjax.train.optimizers:lion",
    "muon": "bigjax.train.optimizers:muon",
}
"""`optim.name` -> the function `(cfg.optim, specs, rate)` that returns the optax transformation."""


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
    if name == place:
        _look_here()
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


def those(field: str, known: Mapping[str, str], suits: Callable[[Any], Any]) -> list[str]:
    """Return the names of `known` of which what they name suits."""
    return [name for name in known if suits(load(field, name, known))]


def task(cfg: Any) -> Any:
    """Return the `tasks.Task` that `train.objective` names, for rooms below that of tasks."""
    return load("train.objective", cfg.train.objective, TASKS)


def _look_here() -> None:
    """Have modules be found in the folder that the command is typed in, as `python -m` does."""
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.append(here)


def is_own(name: str) -> bool:
    """Whether a name is `module.path:NAME` of a module that there is, and not a form that bigjax has a meaning for."""
    module, separator, attribute = name.partition(":")
    if not separator or not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return False
    _look_here()
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return "." in module  # which says best itself why it cannot be imported


def section(name: str) -> str:
    """Return the name of the section in which what `name` names has fields of its own: `NAME` of `module.path:NAME`."""
    return name.rpartition(":")[2]


def own_files(name: str) -> dict[str, Path]:
    """Return the files of the user's own `module.path:NAME` by module, empty for what bigjax brings.

    They are that of its module and those that it imports, at once or in turn, from the same folder or package.
    """
    module, separator, _ = name.partition(":")
    if not separator:
        return {}
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        here = waiting.pop()
        file = _file_of(here)
        if here in found or file is None:
            continue
        found[here] = file
        waiting += [other for other in _imports(here, file) if _beside(other, module, _file_of(other), found[module])]
    return dict(sorted(found.items()))


def _file_of(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        return Path(file) if file else None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _imports(module: str, file: Path) -> set[str]:
    """Return the modules that a file imports by name, and those that names it imports from packages may be."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def _beside(other: str, module: str, file: Path | None, first: Path) -> bool:
    """Whether a module is the user's, too: of the same top package, or, of modules in none, in the same folder."""
    if file is None:
        return False
    top = module.partition(".")[0]
    return other.partition(".")[0] == top if "." in module else file.parent == first.parent


def own_hashes(name: str) -> dict[str, str]:
    """Return the sha256 of each of `own_files`, by module."""
    return {module: hashlib.sha256(file.read_bytes()).hexdigest() for module, file in own_files(name).items()}


def digest(name: str) -> str | None:
    """Return the sha256 of all the files of the user's own `module.path:NAME`, None for what bigjax brings."""
    hashes = own_hashes(name)
    return hashlib.sha256(json.dumps(list(hashes.items())).encode()).hexdigest() if hashes else None
