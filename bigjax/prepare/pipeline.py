"""What a config declares: where records come from, and the steps that they go through."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigjax.config import named, strict
from bigjax.config.fields import bounded, fields, plumbing
from bigjax.config.sections import NoFields, extended
from bigjax.errors import ConfigError
from bigjax.prepare.step import STEPS, Fitted, Step, load


@dataclass(frozen=True)
class Preparation:
    """A preparation; each step that has options has a section for them, as in `near_duplicates.threshold`.

    A source is `text:GLOB` (a file is a record), `jsonl:GLOB`, `csv:GLOB`, `tsv:GLOB`, `parquet:GLOB` or `images:GLOB`.
    """

    sources: tuple[str, ...] = ()
    """Where the raw records are, in the forms listed above."""
    steps: tuple[str, ...] = ()
    """The steps in their order, by name, or your own as `module.path:NAME`."""
    text_key: str = "text"
    """The column with the text."""
    seed: int = bounded(0, minimum=0)
    """What random choices depend on, beside the records."""
    shard_mb: float = bounded(64.0, above=0)
    """About how many megabytes of the sources are one shard, which one worker takes and which becomes one file."""
    examples: int = plumbing(3, minimum=0)
    """Records that the report shows of those that a rule dropped, and of those that a step changed or kept."""

    @classmethod
    def schema_of(cls, mapping: Any) -> type:
        """Return the class that has the sections of the steps that a mapping names."""
        steps = mapping.get("steps", ())
        known = [name for name in steps if isinstance(name, str)] if isinstance(steps, (tuple, list)) else []
        return extended(Preparation, tuple((named.section(name), load(name).fields) for name in dict.fromkeys(known)))

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preparation":
        """Return the preparation of a ConfigDict whose `steps` may have been changed since it was declared.

        The options of steps that are not done are left out, and those of new ones are at their defaults.

        Raises:
          ConfigError: a step or an option does not exist, or does not take its value.
        """
        left_out = set(STEPS) - set(fields(Preparation.schema_of(config)))
        return strict.from_dict(Preparation, {name: config[name] for name in config if name not in left_out})

    def __post_init__(self):
        names = [named.section(name) for name in self.steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"steps: {twice[0]} stands there twice: a step is done once")
        clash = [name for name in names if name in fields(Preparation)]
        if clash:
            raise ConfigError(f"steps: {clash[0]} is a field of every preparation: call the step something else")
        trained = [name for name, step in self.loaded() if isinstance(step, Fitted) and step.trained]
        early = [name for name in trained if "sides" in names and names.index(name) < names.index("sides")]
        if early:
            raise ConfigError(f"steps: {early[0]} would learn from held-out records, too: put sides before it")
        if trained and getattr(self.options("sides"), "folds", 0):
            raise ConfigError(f"steps: with sides.folds, {trained[0]} would learn from every fold: prepare folds alone")

    def __reduce__(self):
        # The class with the sections is made anew in another process.
        return _rebuilt, (strict.to_dict(self),)

    def options(self, name: str) -> Any:
        """Return the options of a step."""
        return getattr(self, named.section(name), None) or NoFields()

    def loaded(self) -> list[tuple[str, Step | Fitted]]:
        """Return the name and the step of each step."""
        return [(named.section(name), load(name)) for name in self.steps]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal characters of all that the prepared records depend on beside the sources' content."""
        code = {name: digest for name in self.steps if (digest := named.digest(name))}
        content = json.dumps([strict.fingerprint(self), code], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16] if code else strict.fingerprint(self)


def _rebuilt(values: dict[str, Any]) -> Preparation:
    return strict.from_dict(Preparation, values)


def declare(**values: Any) -> Any:
    """Return the ConfigDict of a preparation: the fields of `Preparation`, and options of a step as a dict by its name.

        declare(steps=("unicode", "gopher_quality"), gopher_quality={"min_words": 20})

    Raises:
      ConfigError: a step or an option does not exist, or does not take its value.
    """
    return strict.to_config_dict(strict.from_dict(Preparation, values))


def resolved(config: Mapping[str, Any]) -> Preparation:
    """Return the preparation of a ConfigDict, which can be carried out.

    Raises:
      ConfigError: as `Preparation.of`, or there are no sources or no steps.
    """
    cfg = Preparation.of(config)
    if not cfg.sources:
        raise ConfigError("sources is empty: say where the records are, as in --config.sources=jsonl:raw/*.jsonl")
    if not cfg.steps:
        raise ConfigError("steps is empty: name at least one, as in --config.steps=unicode")
    return cfg
