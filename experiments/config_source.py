"""Where a config comes from: a config file, the folder of a run, a preset of a plan, or a Hugging Face folder."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, OptimConfig, TrainConfig, paths, shipped, strict
from bigjax.config import fields as schema
from bigjax.config import named as known
from bigjax.errors import UserError, named
from bigjax.interop.hf import config as hf_config
from bigjax.paths import as_path
from bigjax.run.folder import RunFolder

from .config_package import package_of

_NO_SUCH_KEY = re.compile(r"[\"']*Key \"(\w+)\" does not exist and cannot be added since the config is locked")
"""What a locked ConfigDict says, before it lists all that it has."""


_NO_SUCH_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
"""What Python says of a field that a section does not have."""


NAMING = ("model.family", "train.objective")
"""Fields that say which sections a config has."""


def load(source: str) -> ConfigDict:
    """Return the locked ConfigDict of `FILE[:ARG]`, of `PRESET.json`, of `hf:PATH`, or the one recorded by a run.

    Of a file that comes with bigjax the name is enough: `llama:8b`, `sweeps/lr_width`, `presets/llama-8b-v5e-256-fsdp`.

    Raises:
        UserError: there is no such file or folder, the file's `get_config` refuses the argument, or its code fails.
    """
    if not source:
        raise UserError(
            "a config is missing: give FILE[:ARG], the name of a shipped one, the folder of a run, or hf:PATH"
        )
    if folder := hf_config.folder_of(source):
        return strict.to_config_dict(_finetuning(source, folder))
    if (place := as_path(found := shipped.located(source))).is_dir():
        return strict.to_config_dict(RunFolder(place).load_config())
    if found.endswith(".json"):
        return _load_preset(Path(found))
    file, _, argument = source.partition(":")
    module = _load_module(file)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise UserError(f"{file} defines no get_config(): it is not a config file")
    arguments = [argument] if argument else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        wanted = "takes no argument" if argument else "needs an argument"
        raise UserError(f"{source}: {file} {wanted}: use {file}{'' if argument else ':ARG'}") from None
    with _running(file):
        try:
            config = get_config(*arguments)
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{source}: get_config() returned a {type(config).__name__}, expected a ConfigDict")
    return config.lock()


def load_config(source: str | Path, changes: Mapping[str, Any] = MappingProxyType({})) -> Config:
    """Return a config from where `--config` finds it, with some fields changed as flags change them.

        load_config("gpt:d12", {"train.steps": 100, "model.num_layers": 4})

    Args:
        source: the name of a config that comes with bigjax, a config file, the folder of a run, or `hf:PATH`; a name
            or a file with its argument, if it takes one, after a colon.
        changes: values by `section.field`. What is derived from a field follows it.

    Raises:
        UserError: as `load`; or a field does not exist or does not take the value, or fields clash.
    """
    return strict.from_dict(Config, _changed(load(str(source)), changes, str(source), str(source)))


def _changed(config: ConfigDict, changes: Mapping[str, Any], where: str, source: str) -> ConfigDict:
    try:
        config, declared = with_named(config, {path: changes[path] for path in NAMING if path in changes})
        # A ConfigDict would take True for 1.0.
        values = {path: strict.convert(declared, path, value) for path, value in changes.items()}
    except strict.ConfigError as error:
        raise UserError(f"{where}: {error}") from error
    try:
        config.update_from_flattened_dict(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} changes what {source} does not have: {error}") from error
    return config


def with_named(config: ConfigDict, changes: dict[str, str]) -> tuple[ConfigDict, type[Config]]:
    """Return a config with the sections that belong to what its fields name, and the class that declares them.

    Args:
      changes: fields that name something, such as `model.family`, and what they are to name.
    """
    if not changes:
        return config, Config.schema_of(config.to_dict())
    nested = paths.with_fields(Config, config.to_dict(), changes)
    declared = Config.schema_of(nested)
    for path, section in schema.sections(declared).items():
        *parents, name = path.split(".")
        node = functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, nested)
        node.setdefault(name, strict.to_config_dict(section()).to_dict())
    return ConfigDict(nested).lock(), declared


def load_sweep(source: str) -> Callable[[Any], Any]:
    """Return the `sweep` of the config file of `FILE[:ARG]`, whose own mistakes are a UserError.

    Raises:
        UserError: there is no such file, or it defines none.
    """
    what = "sweep(add), which adds the points"
    sweep = _function(source, "sweep", what)
    try:
        inspect.signature(sweep).bind(None)
    except TypeError:
        raise UserError(f"{source.partition(':')[0]} defines no {what}: its sweep takes something else") from None

    def checked(add: Any) -> None:
        with _running(source.partition(":")[0]):
            sweep(add)

    return checked


def load_space(source: str) -> Any:
    """Return what `space()` of the config file of `FILE[:ARG]` returns.

    Raises:
        UserError: there is no such file, it defines none, or its code fails.
    """
    space = _function(source, "space", "space(), which returns a distribution for every field to search")
    with _running(source.partition(":")[0]):
        return space()


def _function(source: str, name: str, what: str) -> Callable[..., Any]:
    file = source.partition(":")[0]
    found = getattr(_load_module(file), name, None)
    if not callable(found):
        raise UserError(f"{file} defines no {what}: see configs/sweeps/, or --config=sweeps/lr_width")
    return found


def _finetuning(source: str, folder: Path) -> Config:
    """Return a run that starts from the model of a Hugging Face folder, with its tokenizer if it has one.

    The objective is the first that trains such a model. An encoder without a head that an objective trains gets a new
    one for masked tokens. The learning rate is that of instruction tuning of a 7B model
    (Taori et al. 2023), smaller models bear more; and the least of those for BERT (Devlin et al. 2019, appendix A.3).
    An encoder-decoder is tuned as T5 was (Raffel et al. 2020, section 3.1.2).
    """
    model = hf_config.import_config(folder).model
    tasks = {name: known.load("train.objective", name, known.TASKS) for name in reversed(known.TASKS)}
    heads = {task.head: name for name, task in tasks.items() if model.kind in task.families}
    head = model.head if model.head in heads else "lm"
    tokenizer = folder / "tokenizer.json"
    length = min(model.max_seq_len, 1024)
    data = DataConfig(
        seq_len=length,
        target_len=length // 4 if model.kind == "encdec" else 0,
        tokenizer=f"hf:{tokenizer}" if tokenizer.is_file() else "bytes",
        doc_stride=min(DataConfig().doc_stride, max(1, length // 2 - 1)),
        classes=hf_config.class_names(folder) if model.num_classes else (),
    )
    optim = OptimConfig(lr=2e-5, warmup=0.03, weight_decay=0.0)
    if model.kind == "encdec":
        optim = OptimConfig(name="adafactor", lr=1e-3, schedule="constant", weight_decay=0.0, grad_clip=None)
    return Config(
        model=dataclasses.replace(model, head=head),
        data=data,
        train=TrainConfig(objective=heads[head]),
        optim=optim,
        init_from=source,
    )


def _load_preset(path: Path) -> ConfigDict:
    """Return the config that a preset names, with the preset's changes: `{"config": ..., "changes": {path: value}}`."""
    try:
        preset = json.loads(path.read_text())
        config, changes = load(preset["config"]), dict(preset["changes"])
    except FileNotFoundError:
        raise UserError(f"there is no preset {str(path)!r}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a preset, a JSON object with 'config' and 'changes': {named(error)}") from error
    return _changed(config, changes, str(path), preset["config"])


def _load_module(file: str) -> ModuleType:
    path = Path(shipped.located(file))
    if not path.is_file():
        siblings = [str(other) for other in path.parent.glob("*.py") if other.name != "__init__.py"]
        near = (difflib.get_close_matches(str(path), siblings, n=1) or [shipped.nearest(file)])[0]
        raise UserError(f"there is no config file {file!r}" + (f": did you mean {near}?" if near else ""))
    with _running(file):
        package = package_of(path)
    spec = importlib.util.spec_from_file_location(f"{package}.config_file" if package else "config_file", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python file, so it cannot be a config file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name while the file runs.
    sys.modules[spec.name] = module
    with _running(file):
        try:
            spec.loader.exec_module(module)
        except OSError as error:
            if error.filename != spec.origin:  # of a file that the config itself opens
                raise
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return module


@contextlib.contextmanager
def _running(file: str) -> Iterator[None]:
    """Make what the user's own code in `file` raises a UserError that names its line there."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        file, frames = shipped.located(file), traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).absolute() == Path(file).absolute()]
        # What the file imports from elsewhere, such as its get_config, has no line here.
        where = f"{file}:{own[-1].lineno}" if own else f"{file}: {frames[-1].filename}:{frames[-1].lineno}"
        said = str(error)
        if typo := _NO_SUCH_KEY.match(said):
            raise UserError(f"{where}: {schema.unknown_field(Config, typo[1])}") from error
        if (typo := _NO_SUCH_ARGUMENT.match(said)) and (path := _path_of(*typo.groups())):
            raise UserError(f"{where}: {schema.unknown_field(Config, path)}") from error
        if isinstance(error, SyntaxError) and error.filename:
            where, said = f"{error.filename}:{error.lineno}", error.msg
        if isinstance(error, ImportError) and "relative import" in said:
            said = f"{Path(file).parent} is no package (no __init__.py): import from bigjax.configs what is there"
        reason = f"{type(error).__name__}: {said}".partition("\n")[0].removesuffix(": ")
        raise UserError(f"{where}: {reason} (--debug shows the traceback)") from error


def _path_of(section: str, name: str) -> str | None:
    """Return the path of a field, known or not, by the name of the dataclass of its section; None of another class."""
    paths = {cls.__name__: f"{path}.{name}" for path, cls in schema.sections(Config).items()}
    return name if section == Config.__name__ else paths.get(section)
