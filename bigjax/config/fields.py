"""Declaring the fields of a config, and asking a schema what it holds.

A schema is a dataclass whose fields are bool, int, float, str, `Literal` of strings, `tuple[X, ...]`, `X | None`,
`X | Literal["auto"]` or another such dataclass, called a section. Fields are declared with `bounded` and `plumbing`
where they need it.
"""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

TYPE_NAMES = {bool: "a bool", int: "an int", float: "a float", str: "a str", type(None): "None"}
_BOUNDS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}


def bounded(
    default: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field whose number must satisfy minimum <= x <= maximum and above < x < below."""
    bounds = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    return dataclasses.field(default=default, metadata={k: v for k, v in bounds.items() if v is not None})


def plumbing(
    default: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field that does not change the numbers a run produces, so that its fingerprint leaves it out."""
    inner = bounded(default, minimum=minimum, maximum=maximum, above=above, below=below)
    return dataclasses.field(default=default, metadata={**inner.metadata, "plumbing": True})


def named_field(default: str, known: Mapping[str, str]) -> Any:
    """Declare a field that names one of `known`, or the user's own as `module.path:NAME` (`config.named`)."""
    return dataclasses.field(default=default, metadata={"named": tuple(known)})


@functools.cache
def field_paths(cls: type) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Return the annotation and metadata of every field of `cls` that is not a section, by dotted path."""
    paths = {}
    for name, (annotation, field) in fields(cls).items():
        if dataclasses.is_dataclass(annotation):
            inner = field_paths(typing.cast(type, annotation))
            paths.update({f"{name}.{path}": declared for path, declared in inner.items()})
        else:
            paths[name] = (annotation, field.metadata)
    return paths


def expected(cls: type, path: str) -> str:
    """Say in words what the field of `cls` at `path` accepts.

    Raises:
        KeyError: there is no such field.
    """
    return describe(*field_paths(cls)[path])


def unknown_field(cls: type, path: str) -> str:
    """Return the sentence that says `path` is no field of `cls` and which field is nearest, in any section.

    A class may say in `RENAMED` what a field of an earlier version is now, by path.
    """
    if path in (renamed := getattr(cls, "RENAMED", {})):
        return f"{path} is now {renamed[path]}"
    if said := getattr(cls, "elsewhere", lambda path: None)(path):
        return said
    section, _, name = path.rpartition(".")
    anywhere, here = ("", 0.0), ("", 0.0)
    for candidate in [*field_paths(cls), *sections(cls)]:
        candidate_section, _, candidate_name = candidate.rpartition(".")
        score = _similarity(name, candidate_name)
        if candidate_section == section and candidate_name in name.split("_"):
            score = max(score, 0.7)  # tensor_parallel is more of a tensor than of a tensorboard
        if score >= 0.6 and (score := score + 0.05 * (candidate_section == section)) > anywhere[1]:
            anywhere = candidate, score
        if score >= 0.9 and candidate_section == section and score > here[1]:
            here = candidate, score
    if near := list(filter(None, dict.fromkeys((here[0], anywhere[0])))):
        return f"{path} is not a field of the config: did you mean {' or '.join(near)}?"
    known = sections(cls).get(section, cls)
    return f"{path} is not a field of the config: {section or 'it'} has {', '.join(fields(known))}"


@functools.cache
def fields(cls: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Return the resolved annotation and the declaration of every field of the dataclass `cls`, by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: (hints[field.name], field) for field in dataclasses.fields(cls)}


def sections(cls: type, prefix: str = "") -> dict[str, type]:
    """Return the dataclass of every section of `cls`, by dotted path."""
    found: dict[str, type] = {}
    for name, (annotation, _) in fields(cls).items():
        if dataclasses.is_dataclass(annotation):
            section = typing.cast(type, annotation)
            found |= {f"{prefix}{name}": section, **sections(section, f"{prefix}{name}.")}
    return found


def _similarity(name: str, candidate: str) -> float:
    """Score two names between 0 and 1; initials (learning_rate, lr) and missing words (batch_size) count as close."""
    words, candidate_words = name.split("_"), candidate.split("_")
    if words[0] == "n" and candidate.removesuffix("s") == f"num_{name[2:].removesuffix('s')}":
        return 1.0
    for long, short in ((words, candidate), (candidate_words, name)):
        if len(long) > 1 and "".join(word[:1] for word in long) == short:
            return 0.95
    if set(words) < set(candidate_words) or (len(candidate_words) > 1 and set(candidate_words) < set(words)):
        return 0.9
    return difflib.SequenceMatcher(None, name, candidate).ratio()


def unwrap_optional(annotation: Any) -> tuple[Any, bool]:
    """Split `X | None` into X and whether None is allowed, and of `X | Literal["auto"]` take X."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner, *others = typing.get_args(annotation)
        return inner, type(None) in others
    return annotation, False


def words(annotation: Any) -> tuple[str, ...]:
    """Return what `X | Literal["auto"]` takes besides X, empty for other annotations."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return ()
    return tuple(word for arg in typing.get_args(annotation)[1:] for word in typing.get_args(arg))


def describe(annotation: Any, metadata: Mapping[str, Any]) -> str:
    """Say in words what a field with this annotation and these bounds accepts, e.g. 'a float above 0 or None'."""
    inner, optional = unwrap_optional(annotation)
    if typing.get_origin(inner) is Literal:
        text = "one of " + ", ".join(map(repr, typing.get_args(inner)))
    elif "named" in metadata:
        text = f"one of {', '.join(map(repr, metadata['named']))}, or your own as 'module.path:NAME'"
    elif typing.get_origin(inner) is tuple:
        text = f"a tuple of {typing.get_args(inner)[0].__name__}"
    else:
        text = TYPE_NAMES[inner]
    bounds = " and ".join(f"{words} {metadata[bound]}" for bound, words in _BOUNDS.items() if bound in metadata)
    besides = [*map(repr, words(annotation)), *(["None"] if optional else [])]
    return " ".join([*filter(None, (text, bounds)), *(f"or {word}" for word in besides)])
