"""Model families. Each is a module with `specs`, `apply`, `logits` and what its objective needs."""

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from bigjax.config import ModelConfig
from bigjax.models import decoder, encdec, encoder, rnn
from bigjax.models.parts import mup

FAMILIES: dict[str, ModuleType] = {"decoder": decoder, "encoder": encoder, "encdec": encdec, "rnn": rnn}


@dataclass(frozen=True)
class Model:
    """A family's functions together with the configuration they take."""

    cfg: ModelConfig
    family: ModuleType

    @cached_property
    def specs(self) -> Any:
        """The nested dict of `ParamSpec`."""
        declared = self.family.specs(self.cfg)
        if self.cfg.parametrization == "standard":
            return declared
        return mup.parametrized(declared, self.family.specs(mup.base_shape(self.cfg)), self.cfg)


def build(cfg: ModelConfig) -> Model:
    """Return the model that `cfg.family` names."""
    return Model(cfg, FAMILIES[cfg.family])
