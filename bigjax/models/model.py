"""A model: a family's functions together with the configuration they take.

Legend: B batch, S sequence, T what a decoder reads, V vocab, C classes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from bigjax import params as param_tree
from bigjax import sharding
from bigjax.config import MeshConfig, ModelConfig, named
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

    def layout(self, mesh: MeshConfig | None = None) -> Layout:
        """Return where each axis lives on the mesh that `jax.set_mesh` has set, as `sharding.on_the_mesh` does."""
        return sharding.on_the_mesh(self.specs, mesh, self.family.mesh_axes)

    # A config is checked where JAX is not imported yet, and this room with it.

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
        layout = self.layout() if layout is None else layout
        if not layout.sizes:
            return jax.tree.map(jnp.asarray, params)

        def put(spec: Any, w: Any) -> jax.Array:
            if isinstance(w, jax.Array):
                return jax.reshard(w, layout.param(spec))
            # From the host each device gets its part only.
            where = jax.sharding.NamedSharding(jax.sharding.get_mesh(), layout.param(spec) or jax.P())
            return jax.device_put(w, where)

        return jax.tree.map(put, self.specs, params)

    def apply(self, params: Any, tokens_BS: Any, layout: Layout | None = None, **inputs: Any) -> jax.Array:
        """Return logits in float32, `(B, S, V)` of a model that predicts tokens, for token ids `(B, S)`.

        An encoder with classes returns `(B, C)`, or `(B, S, C)` where each token has one; an encoder-decoder
        `(B, T, V)` after `inputs_BT`, the tokens that its decoder reads.

        Args:
          layout: as for `place`.
          inputs: what else the family's `apply` takes, such as `segments_BS`, or `key` and `rows_B` for dropout.
        """
        layout = self.layout() if layout is None else layout
        tokens_BS = jnp.asarray(tokens_BS)
        sharding.check_sequence(tokens_BS.shape[1], layout, "the length of a row")
        tokens_BS = layout.place(tokens_BS, "batch", "seq")
        x_BSD, _ = self.family.apply(params, tokens_BS, self.cfg, layout=layout, **inputs)
        return self.family.logits(params, x_BSD, self.cfg, layout)


def build(cfg: ModelConfig) -> Model:
    """Return the model that `cfg.family` names."""
    return Model(cfg, named.load("model.family", cfg.family, named.FAMILIES))
