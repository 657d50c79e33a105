"""Model families: one file each, which declares its parameters, its functions and its own part of a config.

    model = build(cfg.model)
    params = model.init(jax.random.key(0))
    logits = model.apply(params, tokens)

Read `family` first, then `decoder`; `parts` is what families are made of, `attention` and `moe` two rooms of their own.
Legend: B batch, S sequence, V vocab.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from bigjax import params as param_tree
from bigjax import sharding
from bigjax.config import ModelConfig, named
from bigjax.models.family import Family
from bigjax.models.parts import mup
from bigjax.sharding import Layout


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

    def init(self, key: jax.Array, layout: Layout | None = None) -> Any:
        """Return initial parameters, a nested dict of float32 arrays as `specs` declares them; see `place`.

        The same key gives the same bits on every mesh.
        """
        return self.place(param_tree.init(self.specs, key), layout)

    def place(self, params: Any, layout: Layout | None = None) -> Any:
        """Return parameters, such as the NumPy arrays of an import, on the device, or where the mesh stores them.

        Args:
          layout: where each axis lives; by default on the mesh that `jax.set_mesh` has set, if any.

        Raises:
          ShardingError: the mesh does not fit the model.
        """
        layout = sharding.on_the_mesh(self.specs) if layout is None else layout
        if not layout.sizes:
            return jax.tree.map(jnp.asarray, params)
        return jax.tree.map(lambda spec, w: _stored(w, layout.param(spec)), self.specs, params)

    def apply(self, params: Any, tokens_BS: Any, layout: Layout | None = None, **inputs: Any) -> jax.Array:
        """Return logits in float32, `(B, S, V)` of a model that predicts tokens, for token ids `(B, S)`.

        An encoder with classes returns `(B, C)`, or `(B, S, C)` where each token has one; an encoder-decoder
        `(B, T, V)` after `inputs_BT`, the tokens that its decoder reads.

        Args:
          layout: as for `place`.
          inputs: what else the family's `apply` takes, such as `segments_BS`, or `key` and `rows_B` for dropout.
        """
        layout = sharding.on_the_mesh(self.specs) if layout is None else layout
        tokens_BS = layout.place(jnp.asarray(tokens_BS), "batch", "seq")
        x_BSD, _ = self.family.apply(params, tokens_BS, self.cfg, layout=layout, **inputs)
        return self.family.logits(params, x_BSD, self.cfg, layout)


def _stored(w: Any, where: Any) -> jax.Array:
    """Return a parameter where it is stored; one on the host goes to each device in its part only."""
    if isinstance(w, jax.Array):
        return jax.reshard(w, where)
    return jax.device_put(w, NamedSharding(jax.sharding.get_mesh(), where))


def build(cfg: ModelConfig) -> Model:
    """Return the model that `cfg.family` names."""
    return Model(cfg, named.load("model.family", cfg.family, named.FAMILIES))
