"""Model families: one file each, which declares its parameters, its functions and its own part of a config.

Read `family` first, then `decoder`; `parts` is what families are made of, `attention` and `moe` two rooms of their own.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bigjax.config import ModelConfig, named
from bigjax.models.family import Family
from bigjax.models.parts import mup


@dataclass(frozen=True)
class Model:
    """A family's functions together with the configuration they take."""

    cfg: ModelConfig
    family: Family

    @cached_property
    def specs(self) -> Any:
        """The nested dict of `ParamSpec`."""
        declared = self.family.specs(self.cfg)
        if self.cfg.parametrization == "standard":
            return declared
        return mup.parametrized(declared, self.family.specs(mup.base_shape(self.cfg)), self.cfg)


def build(cfg: ModelConfig) -> Model:
    """Return the model that `cfg.family` names."""
    return Model(cfg, named.load("model.family", cfg.family, named.FAMILIES))
