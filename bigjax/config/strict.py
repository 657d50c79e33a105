"""Strict conversion between plain mappings and frozen dataclasses, and the identity of a config."""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from bigjax.config import named
from bigjax.config.fields import (
    TYPE_NAMES,
    bounded,
    describe,
    field_paths,
    fields,
    plumbing,
    sections,
    unknown_field,
    unwrap_optional,
    words,
)
from bigjax.config.paths import nested, schema_of
from bigjax.errors import ConfigError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

__all__ = [
    "ConfigError",
    "Difference",
    "Leaf",
    "bounded",
    "code_of",
    "convert",
    "diff",
    "fingerprint",
    "from_dict",
    "leaves",
    "maths",
    "plumbing",
    "to_config_dict",
    "to_dict",
]

T = TypeVar("T")

INT32_MAX = 2**31 - 1
FLOAT32_TINY, FLOAT32_MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""The smallest normal number, as far as devices go, and the largest."""


class Leaf(NamedTuple):
    """One field of a config, in the form `to_dict` gives it."""

    path: str
    value: Any
    plumbing: bool


class Difference(NamedTuple):
    """A field that two configs set differently."""

    path: str
    a: Any
    b: Any
    plumbing: bool


def from_dict(cls: type[T], mapping: "Mapping[str, Any] | ConfigDict") -> T:
    """Build the dataclass `cls` from a nested dict or ConfigDict; fields left out take their default.

    An int is accepted for a float and a list for a tuple; nothing else is converted.

    Raises:
        ConfigError: a field is unknown, of the wrong type, out of bounds or none of its choices (all such problems at
            once, each with the path, the value, what was expected and the nearest name), or fields clash.
    """
    problems: list[str] = []
    cls = schema_of(cls, mapping)
    cfg = _build(cls, mapping, "", cls, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return cfg


def convert(cls: type, path: str, value: Any) -> Any:
    """Return a value as the field of `cls` at `path`, which may be in a section, stores it.

    Raises:
        ConfigError: there is no such field, or it does not accept the value.
    """
    problems: list[str] = []
    if path in sections(cls):
        problems.append(f"{path} is a section, not a field: name the fields in it one by one")
    elif path not in field_paths(cls):
        problems.append(unknown_field(cls, path))
    else:
        value = _convert(*field_paths(cls)[path], value, path, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def to_dict(cfg: Any) -> dict[str, Any]:
    """Return `cfg` as a nested dict that JSON can hold: tuples as lists, every float field as a float."""
    return nested({leaf.path: leaf.value for leaf in leaves(cfg)})


def maths(cfg: Any) -> dict[str, Any]:
    """Return `to_dict` without plumbing fields, and without the sections that have no others."""
    return nested({leaf.path: leaf.value for leaf in leaves(cfg) if not leaf.plumbing})


def fingerprint(cfg: Any, code: Mapping[str, str] | None = None) -> str:
    """Return 16 hexadecimal characters that two configs share exactly when their maths fields agree.

    Fields at their default are left out, so that a new field does not change the identity of what ran before it. Of
    the user's own code that a field names, the content of its files counts.

    Args:
      code: the hash of that code by the field's path, as it was once; None: as it is now.
    """
    defaults = _defaults(type(cfg))
    changed = [leaf for leaf in leaves(cfg) if not leaf.plumbing and leaf.value != defaults[leaf.path]]
    fields = nested({leaf.path: leaf.value for leaf in changed})
    if own := code_of(cfg):
        fields["code"] = {path: named.digest(name) for path, name in own.items()} if code is None else code
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def code_of(cfg: Any) -> dict[str, str]:
    """Return the fields that name the user's own code, `module.path:NAME`, by path."""
    declared = field_paths(type(cfg))
    return {
        leaf.path: leaf.value
        for leaf in leaves(cfg)
        if "named" in declared[leaf.path][1] and isinstance(leaf.value, str) and ":" in leaf.value
    }


def _defaults(cls: type) -> dict[str, Any]:
    """Return the value of every field of a default object, and of every section that such an object has not."""
    default = cls()
    found = {leaf.path: leaf.value for leaf in leaves(default)}
    for path, section in sections(cls).items():
        found = {f"{path}.{leaf.path}": leaf.value for leaf in leaves(section())} | found
    return found


def diff(a: Any, b: Any) -> list[Difference]:
    """Return the fields in which two configs differ, in the order of the schema; None for a field that one has not.

    Raises:
        TypeError: the two are no configs of one kind.
    """
    if type(a).__name__ != type(b).__name__:
        raise TypeError(f"cannot compare a {type(a).__name__} with a {type(b).__name__}")
    ours, theirs = ({leaf.path: leaf for leaf in leaves(cfg)} for cfg in (a, b))
    found = []
    for path, leaf in (theirs | ours).items():
        values = [side[path].value if path in side else None for side in (ours, theirs)]
        if values[0] != values[1]:
            found.append(Difference(path, values[0], values[1], leaf.plumbing))
    return found


def leaves(cfg: Any) -> list[Leaf]:
    """Return every field of `cfg` that is not a section, in the order of the schema."""
    found = []
    for path, (annotation, metadata) in field_paths(type(cfg)).items():
        value = functools.reduce(getattr, path.split("."), cfg)
        found.append(Leaf(path, _canonical(annotation, value), bool(metadata.get("plumbing"))))
    return found


def to_config_dict(cfg: Any) -> "ConfigDict":
    """Return `cfg` as a locked ConfigDict whose fields keep their types, so that command-line flags can set them.

    A field that may be None is a typed placeholder: it can be set where it is None and set to None where it is not.
    A field equal to what the dataclass would derive for it is written as its default (zero means: derive), so that it
    follows the fields it is derived from when those are overridden.
    """
    from ml_collections import ConfigDict

    return ConfigDict(_typed(cfg)).lock()


def _build(cls: type, mapping: Any, prefix: str, root: type, problems: list[str]) -> Any:
    """Build one section, or append what is wrong with it to `problems`."""
    if not callable(getattr(mapping, "items", None)):
        problems.append(
            f"{prefix[:-1] or 'config'}={_shown(mapping)} is {_kind(mapping)}, expected a mapping of fields"
        )
        return None
    values, before = {}, len(problems)
    for name, value in mapping.items():
        path = f"{prefix}{name}"
        if name not in fields(cls):
            problems.append(unknown_field(root, path))
            continue
        annotation, field = fields(cls)[name]
        if dataclasses.is_dataclass(annotation):
            values[name] = _build(typing.cast(type, annotation), value, f"{path}.", root, problems)
        else:
            values[name] = _convert(annotation, field.metadata, value, path, problems)
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except ConfigError as error:
        problems.append(str(error))


def _convert(annotation: Any, metadata: Mapping[str, Any], value: Any, path: str, problems: list[str]) -> Any:
    """Return `value` as the field stores it, or append what is wrong with it to `problems`."""
    inner, optional = unwrap_optional(annotation)
    origin, wanted = typing.get_origin(inner), describe(annotation, metadata)
    if value in words(annotation):
        return value
    if value is None:
        if not optional:
            problems.append(f"{path}=None is not allowed, expected {wanted}")
        return None
    if origin is tuple and isinstance(value, (tuple, list)):
        element = typing.get_args(inner)[0]
        return tuple(_convert(element, metadata, x, f"{path}[{i}]", problems) for i, x in enumerate(value))
    choices = typing.get_args(inner) if origin is Literal else metadata.get("named")
    if choices and isinstance(value, str):
        if value in choices or ("named" in metadata and ":" in value):
            return value
        near = difflib.get_close_matches(value, choices, n=1)
        problems.append(f"{path}={value!r} is not {wanted}" + (f": did you mean {near[0]!r}?" if near else ""))
        return None
    accepted = (int, float) if inner is float else inner
    if origin or not isinstance(value, accepted) or (isinstance(value, bool) and inner is not bool):
        problems.append(f"{path}={_shown(value)} is {_kind(value)}, expected {wanted}")
        return None
    value = _as_float(value) if inner is float else value
    if inner is float and not math.isfinite(value):
        problems.append(f"{path}={value} is not finite, expected {wanted}")
    elif not _within(value, metadata):
        problems.append(f"{path}={_shown(value)} is out of bounds, expected {wanted}")
    elif inner in (int, float) and not _fits(value, metadata):
        problems.append(f"{path}={_shown(value)} does not fit into 32 bits, expected {wanted}")
    return value


def _within(value: Any, metadata: Mapping[str, Any]) -> bool:
    return not (
        ("minimum" in metadata and value < metadata["minimum"])
        or ("maximum" in metadata and value > metadata["maximum"])
        or ("above" in metadata and value <= metadata["above"])
        or ("below" in metadata and value >= metadata["below"])
    )


def _fits(value: Any, metadata: Mapping[str, Any]) -> bool:
    """Return whether a number keeps its meaning in a compiled program; an int with a maximum of its own may be larger.

    Those for the host alone are held to the same.
    """
    if isinstance(value, int):
        return "maximum" in metadata or abs(value) <= INT32_MAX
    return value == 0 or FLOAT32_TINY <= abs(value) <= FLOAT32_MAX


def _as_float(value: int | float) -> float:
    try:
        # Adding zero turns -0.0 into 0.0, which compares equal but prints, and so hashes, differently.
        return float(value) + 0.0
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(value: Any) -> str:
    name = type(value).__name__
    return TYPE_NAMES.get(type(value)) or ("an " if name[:1] in "aeiou" else "a ") + name


def _canonical(annotation: Any, value: Any) -> Any:
    inner, _ = unwrap_optional(annotation)
    if typing.get_origin(inner) is tuple and isinstance(value, (tuple, list)):
        return [_canonical(typing.get_args(inner)[0], element) for element in value]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return _as_float(value) if inner is float and is_number else value


def _typed(cfg: Any) -> dict[str, Any]:
    """Return the nested dict behind `to_config_dict`: tuples kept, fields that may be None as typed references."""
    from ml_collections.config_dict import FieldReference

    values = {}
    for name, value in _without_derived(cfg).items():
        annotation = fields(type(cfg))[name][0]
        inner, optional = unwrap_optional(annotation)
        origin = typing.get_origin(inner)
        if dataclasses.is_dataclass(inner):
            values[name] = _typed(value)
            continue
        value = _canonical(annotation, value)
        if origin is tuple:
            value = tuple(value)
        kind = str if origin is Literal else origin or inner
        if words(annotation):  # as literals, flags set both of its types
            kind = object
        values[name] = FieldReference(value, field_type=kind) if optional or words(annotation) else value
    return values


def _without_derived(cfg: Any) -> dict[str, Any]:
    """Return the fields of one dataclass, with the default in place of each value that would be derived anyway."""
    values = {name: getattr(cfg, name) for name in fields(type(cfg))}
    for name, (_, field) in fields(type(cfg)).items():
        if field.default is dataclasses.MISSING or values[name] == field.default:
            continue
        shorter = {**values, name: field.default}
        try:
            redundant = type(cfg)(**shorter) == cfg
        except ConfigError:
            redundant = False
        if redundant:
            values = shorter
    return values
