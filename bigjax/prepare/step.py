"""What a step is: a function on one record, or one that first looks at all of them.

A record is a dict of columns. A step returns it, changed or not, or `Dropped` with the rule that it broke. A step
that must see all records, as one that finds duplicates, is `Fitted`: it observes the records of each shard, combines
what it observed into one state, and is then a function on a record and that state.

The user's own step is `module.path:NAME`, a `Step`, a `Fitted`, or a plain function that returns a record or None.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bigjax.config import named
from bigjax.config.sections import NoFields
from bigjax.prepare.errors import PrepareError

Record = dict[str, Any]
"""The columns of a record."""

Arrays = Mapping[str, np.ndarray]
"""What is observed of a shard, and a state: named arrays that NumPy stores without pickle."""

STEPS = {
    "html": "bigjax.prepare.text.html:STEP",
    "unicode": "bigjax.prepare.text.unicode:STEP",
    "language": "bigjax.prepare.text.language:STEP",
    "gopher_repetition": "bigjax.prepare.text.gopher_repetition:STEP",
    "gopher_quality": "bigjax.prepare.text.gopher_quality:STEP",
    "c4": "bigjax.prepare.text.c4:STEP",
    "fineweb": "bigjax.prepare.text.fineweb:STEP",
    "exact_duplicates": "bigjax.prepare.text.exact_duplicates:STEP",
    "near_duplicates": "bigjax.prepare.text.near_duplicates:STEP",
    "decontaminate": "bigjax.prepare.text.decontaminate:STEP",
    "mask": "bigjax.prepare.text.mask:STEP",
    "quality_sample": "bigjax.prepare.text.quality_sample:STEP",
    "sides": "bigjax.prepare.sides:STEP",
    "missing": "bigjax.prepare.tables.missing:STEP",
    "outliers": "bigjax.prepare.tables.outliers:STEP",
    "scale": "bigjax.prepare.tables.scale:STEP",
    "categories": "bigjax.prepare.tables.categories:STEP",
    "readable": "bigjax.prepare.images.readable:STEP",
    "near_images": "bigjax.prepare.images.near_images:STEP",
}
"""The name of a step -> where it is."""


@dataclass(frozen=True)
class Dropped:
    """The answer of a step that keeps a record out: the rule that it broke, and what it was compared with."""

    rule: str
    because: str = ""


@dataclass(frozen=True)
class Step:
    """A step that looks at one record at a time.

    Attributes:
      build: `(options, cfg)` -> the function of a record, made once a process.
      fields: the dataclass of its options.
      counted: columns that it adds, whose values the report counts.
    """

    build: Callable[[Any, Any], Callable[[Record], Record | Dropped]]
    fields: type = NoFields
    counted: tuple[str, ...] = ()


class Observer(Protocol):
    """What looks at the records of a shard."""

    def add(self, place: int, record: Record) -> None:
        """Look at one record; places ascend over all shards."""

    def arrays(self) -> Arrays:
        """Return what was seen."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A step that looks at all records before it judges the first.

    Attributes:
      observe: `(options, cfg)` -> an `Observer` of one shard.
      combine: `(what was observed of each shard in order, options, cfg)` -> the state.
      build: `(options, cfg, state)` -> the function of a place and its record.
      fields: the dataclass of its options.
      counted: columns that it adds, whose values the report counts.
      trained: whether it learns from records as a model does, so from the training side only.
    """

    observe: Callable[[Any, Any], Observer]
    combine: Callable[[list[Arrays], Any, Any], Arrays]
    build: Callable[[Any, Any, Arrays], Callable[[int, Record], Record | Dropped]]
    fields: type = NoFields
    counted: tuple[str, ...] = ()
    trained: bool = False


def load(name: str) -> Step | Fitted:
    """Return the step that a config names.

    Raises:
      ConfigError: there is no such step, or module, or name in it.
      PrepareError: what the user's module has under the name is no step and no function.
    """
    found = named.load("steps", name, STEPS)
    if isinstance(found, (Step, Fitted)):
        return found
    if not callable(found):
        raise PrepareError(f"steps: {name} is a {type(found).__name__}: a step is a function of a record, or a Step")

    def build(options: Any, cfg: Any) -> Callable[[Record], Record | Dropped]:
        del options, cfg
        return lambda record: _kept(found(record), name)

    return Step(build)


def _kept(answer: Any, name: str) -> Record | Dropped:
    if answer is None:
        return Dropped(named.section(name))
    if isinstance(answer, (dict, Dropped)):
        return answer
    raise PrepareError(f"step {name} returned a {type(answer).__name__}: return the record, None or a Dropped")


def text_of(record: Record, key: str) -> str:
    """Return the text of a record.

    Raises:
      PrepareError: it has none under this column.
    """
    text = record.get(key)
    if isinstance(text, str):
        return text
    if key not in record:
        columns = ", ".join(list(record)[:10])
        raise PrepareError(f"there is no column {key!r} but {columns or 'none'}: set --config.text_key")
    raise PrepareError(f"column {key!r} holds a {type(text).__name__}, not a text: set --config.text_key")
