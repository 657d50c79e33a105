"""Fields of a config by dotted path, as overrides, presets and sweeps name them."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

from bigjax.config.fields import sections


def schema_of(cls: type, mapping: Any) -> type:
    """Return the class that a mapping of fields describes, where some sections depend on what other fields name."""
    return getattr(cls, "schema_of", lambda mapping: cls)(mapping)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields given by dotted path as the nested mapping that `strict.from_dict` reads."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, found)[name] = value
    return found


def with_fields(cls: type, mapping: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mapping of a config with fields set by dotted path.

    Where one of them names another family or task, the sections that the one before had are left out, and those of the
    new one are at their defaults.
    """
    changed = copy.deepcopy(dict(mapping))
    before = schema_of(cls, changed)
    for path, value in changes.items():
        *parents, name = path.split(".")
        node = functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, changed)
        node[name] = value
    after = schema_of(cls, changed)
    for path in sections(before).keys() - sections(after).keys():
        if not any(other.startswith(f"{path}.") for other in changes):
            *parents, name = path.split(".")
            functools.reduce(lambda node, parent: node[parent], parents, changed).pop(name, None)
    return changed
