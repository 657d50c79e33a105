"""Models whose family's own fields are given beside those that all families share, as tests of one family like it."""

import dataclasses
from typing import Any

from bigjax.config import ModelConfig, named, replaced


def model_of(**fields: Any) -> ModelConfig:
    """Return a model; what its family alone has goes into the section of its name."""
    family = fields.get("family", "decoder")
    names = {field.name for field in dataclasses.fields(named.load("model.family", family, named.FAMILIES).fields)}
    own = {name: value for name, value in fields.items() if name in names}
    shared = {name: value for name, value in fields.items() if name not in names}
    return ModelConfig(**shared, **({named.section(family): own} if own else {}))


def changed(model: ModelConfig, **fields: Any) -> ModelConfig:
    """Return a model with other values of some fields, shared or of its family alone."""
    family = fields.get("family", model.family)
    names = {field.name for field in dataclasses.fields(named.load("model.family", family, named.FAMILIES).fields)}
    if family != model.family:
        model = dataclasses.replace(model, family=family)
    return replaced(model, {f"{named.section(family)}.{n}" if n in names else n: v for n, v in fields.items()})
