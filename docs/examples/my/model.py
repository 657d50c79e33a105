"""A decoder whose hidden states are scaled by a learned gate."""

from dataclasses import dataclass, replace

from jax.nn.initializers import ones

from bigjax.config.fields import bounded
from bigjax.models import decoder, family
from bigjax.params import ParamSpec
from my.scale import scaled


@dataclass(frozen=True)
class Fields:
    """What the gate multiplies."""

    strength: float = bounded(1.0, above=0)


def specs(cfg):
    """Declare the decoder's parameters, and the gate."""
    return decoder.specs(cfg) | {"gate": ParamSpec((cfg.d_model,), ("vector",), "norm", ones)}


def apply(params, tokens_BS, cfg, **how):
    """Return the decoder's hidden states times the gate."""
    x_BSD, aux = decoder.apply(params, tokens_BS, cfg, **how)
    return scaled(x_BSD, cfg.own.strength * params["gate"]), aux


gated = replace(family.DECODER, specs=specs, apply=apply, fields=Fields, like="decoder")
