"""Sections that a family or a task brings to the config, beside those that every run has.

A section of the config is a dataclass. One whose fields depend on what another field names, as `model.rnn` on
`model.family`, is not the same class for every run: `extended` makes the class that has it, and a base class picks its
own by the name, so that `ModelConfig(family="rnn", rnn=...)` is what it looks like.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any


@dataclasses.dataclass(frozen=True)
class NoFields:
    """The fields of a family or a task that has none of its own."""


def no_problems(cfg: Any) -> Iterator[str]:
    """Ask nothing of a config."""
    del cfg
    return iter(())


@cache
def extended(base: type, sections: tuple[tuple[str, type], ...]) -> Any:
    """Return the frozen dataclass `base` with more sections, or with another class for one that it has.

    Sections without fields are left out; without any that have some it is `base` itself. The same arguments give the
    same class.
    """
    kept = [(name, cls) for name, cls in sections if dataclasses.fields(cls) and cls is not _declared(base, name)]
    if not kept:
        return base
    made = dataclasses.make_dataclass(
        base.__name__,
        [(name, cls, dataclasses.field(default_factory=cls)) for name, cls in kept],
        bases=(base,),
        frozen=True,
        namespace={"__doc__": base.__doc__},
    )
    made.__module__ = base.__module__
    return made


def _declared(base: type, name: str) -> Any:
    return {field.name: field.type for field in dataclasses.fields(base)}.get(name)


def create(base: type, chosen: type, cls: type, values: dict[str, Any]) -> Any:
    """Return what `cls.__new__` of a class that picks itself must: an object of the class `chosen` by its values.

    Where that is none of `cls`, as when the family of an existing config is replaced, the object is whole: Python calls
    `__init__` only on objects of `cls`, and sections that the chosen class has not are dropped.
    """
    if issubclass(chosen, cls):
        return object.__new__(chosen)
    known = {field.name for field in dataclasses.fields(chosen)}
    own = {field.name for field in dataclasses.fields(cls)} - {field.name for field in dataclasses.fields(base)}
    return chosen(**{name: value for name, value in values.items() if name in known or name not in own})


def given(cfg: Any) -> dict[str, Any]:
    """Return the fields of a dataclass and their values, as its class takes them."""
    return {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}


def rebuild(base: type, values: dict[str, Any]) -> Any:
    """Return what `base` makes of some values: how a copy or a pickle of a class made here comes back."""
    return base(**values)
