"""The state of an optimizer in bfloat16: what is kept from step to step is rounded, what is computed is not."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigjax.config import OptimConfig

SEED = 0x5EED
"""Of the random numbers that round. They are no part of the data's or the model's randomness."""


class Stored(NamedTuple):
    """The state of an optimizer with moments in bfloat16, and the number of updates made, which draws what rounds."""

    count: jax.Array
    inner: Any


def stored(tx: optax.GradientTransformation, cfg: OptimConfig) -> optax.GradientTransformation:
    """Return `tx` with every float32 array of its state kept as `cfg.moments_dtype` and `cfg.stochastic_rounding` say.

    Numbers that are no arrays, and counters, stay. An update is computed in float32 from what was kept, and is itself
    of what is not rounded yet.
    """
    if cfg.moments_dtype == "float32":
        return tx

    def init(params):
        return Stored(jnp.zeros((), jnp.int32), _kept(tx.init(params), None))

    def update(updates, state: Any, params=None):
        key = jax.random.fold_in(jax.random.key(SEED), state.count) if cfg.stochastic_rounding else None
        updates, inner = tx.update(updates, jax.tree.map(_whole, state.inner), params)
        return updates, Stored(state.count + 1, _kept(inner, key))

    return optax.GradientTransformation(init, update)


def _whole(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def _kept(state: Any, key: jax.Array | None) -> Any:
    leaves, tree = jax.tree.flatten(state)
    return jax.tree.unflatten(tree, [_rounded(x, key, number) for number, x in enumerate(leaves)])


def _rounded(x: jax.Array, key: jax.Array | None, number: int) -> jax.Array:
    if x.dtype != jnp.float32 or not x.ndim:
        return x
    return x.astype(jnp.bfloat16) if key is None else stochastically(x, jax.random.fold_in(key, number))


def stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """Return a float32 array in bfloat16, each number rounded up with the probability of its distance from below.

    On average nothing is lost, however small an addition is (Gupta et al. 2015, section 4). The same key draws the same
    on every mesh. What is not finite stays what it is.
    """
    sharding = jax.typeof(x).sharding
    where = None if sharding.mesh.empty or not sharding.mesh.explicit_axes else jax.P(*sharding.spec.partitions)
    draws = jax.random.bits(key, x.shape, jnp.uint16, out_sharding=where).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    cut = ((bits + draws) >> 16).astype(jnp.uint16)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(cut, jnp.bfloat16), x.astype(jnp.bfloat16))
