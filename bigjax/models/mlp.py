"""A multilayer perceptron: records of numbers in, a number out (Rumelhart et al. 1986).

Legend: B batch, F features, D model, M the same at the other end of a matrix, L layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, zeros

from bigjax.config import Config, ModelConfig
from bigjax.config.fields import bounded
from bigjax.models.family import Family
from bigjax.models.parts import layers, stacks
from bigjax.params import ParamSpec
from bigjax.sharding import UNSHARDED, Layout


@dataclass(frozen=True)
class Fields:
    """How many numbers each record has."""

    features: int = bounded(10, minimum=1)
    """Numbers in a record."""


def specs(cfg: ModelConfig) -> dict:
    """Declare the first layer, `num_layers` more, and what makes a number of them; started as by He et al. (2015)."""
    F, D, L = cfg.own.features, cfg.d_model, cfg.num_layers
    first = ParamSpec((F, D), ("features", "embed"), "matrix", normal((2 / F) ** 0.5), ("features",))
    hidden = ParamSpec((L, D, D), ("layers", "embed", "mlp"), "matrix", normal((2 / D) ** 0.5), ("embed",))
    return {
        "embed": {"inputs": first, "bias": ParamSpec((D,), ("vector",), "bias", zeros)},
        "blocks": {"hidden": hidden, "bias": ParamSpec((L, D), ("layers", "mlp"), "bias", zeros)},
        "head": {
            "value": ParamSpec((D, 1), ("embed", "classes"), "head", normal(D**-0.5)),
            "bias": ParamSpec((1,), ("classes",), "bias", zeros),
        },
    }


def apply(
    params: Any,
    inputs_BF: jax.Array,
    cfg: ModelConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
) -> tuple[jax.Array, layers.Aux]:
    """Return what the last hidden layer says, `(B, D)` in the compute dtype; and nothing of itself."""
    declared, rate, where = specs(cfg), 0.0 if key is None else cfg.dropout, layout.act("batch", "embed")
    p = layout.gather(params["embed"], declared["embed"], cfg.dtype)
    x_BD = jnp.einsum("BF,FD->BD", inputs_BF.astype(cfg.dtype), p["inputs"], out_sharding=where) + p["bias"]

    def block(_nth, x, layer, index):
        p = layout.gather(layer, declared["blocks"], cfg.dtype)
        h_BM = jnp.einsum("BD,DM->BM", x, p["hidden"], out_sharding=layout.act("batch", "mlp")) + p["bias"]
        x = layout.place(layers.activation(cfg.activation, h_BM), "batch", "embed")
        return layers.dropout(x, rate, None if key is None else jax.random.fold_in(key, index), rows_B), {}

    return stacks.through(block, layers.activation(cfg.activation, x_BD), params["blocks"], cfg)[0], {}


def values(params: Any, x_BD: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED) -> jax.Array:
    """Return the number that comes out, `(B,)` in float32."""
    p, where = layout.gather(params["head"], specs(cfg)["head"], cfg.dtype), layout.act("batch", "classes")
    out_B1 = jnp.einsum("BD,DC->BC", x_BD, p["value"], preferred_element_type=jnp.float32, out_sharding=where)
    return (out_B1 + p["bias"].astype(jnp.float32))[:, 0]


def problems(cfg: Config) -> Iterator[str]:
    """Ask for a non-linearity without a gate."""
    if cfg.model.activation in ("swiglu", "geglu"):
        yield f"model.activation={cfg.model.activation!r} has a gate, which model.family='mlp' has not: take 'relu'"


FAMILY = Family(specs=specs, apply=apply, values=values, fields=Fields, problems=problems)
