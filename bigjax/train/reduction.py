"""The sum of a step's gradients over devices: once a step, however many microbatches it takes.

JAX sums a parameter's gradient over the devices that split the rows wherever the parameter is used: in each layer of
each microbatch. A parameter whose type says that it is `reduced` over some mesh axes has a cotangent that is
`unreduced` over them: one summand a device, to which microbatches add locally, and which is summed at the end.

Along `fsdp`, and `context`, a parameter is stored in parts, and its gradient is never kept whole: that is summed at
each use, to where it is stored. What is left for the end, over `data`, `expert` and `slice`, is as much smaller:
gradients go between slices when they have been summed within one, and each device sends its own part.
"""

from typing import Any

import jax
import jax.numpy as jnp

from bigjax.params import ParamSpec
from bigjax.sharding import Layout, axes_of

LOCAL_AXES = {"experts", "gates"}
"""Logical axes of what a sparse layer or a recurrent cell computes with in a map or a loop of its own."""


def mark(params: Any, specs: Any, layout: Layout) -> Any:
    """Return the parameters, those in products and look-ups of tokens `reduced` over the axes that split only the rows.

    The output matrix is, in a loss in chunks and under muP, too. Not marked, and so summed at each use, are vectors and
    tables of positions, which JAX does not multiply with or add to what is split if they are, and what `LOCAL_AXES`
    names. Nothing is where activations are split in another way before a product than in it: with
    `mesh.shard_sequence`, and in the stages of a pipeline.
    """
    rows = frozenset(layout.over("batch", "seq"))
    if not rows or layout.stages > 1 or not rows >= {*layout.over("residual_seq")}:
        return params

    def marked(spec: ParamSpec, w: jax.Array) -> jax.Array:
        stored = jax.typeof(w).sharding.spec
        in_products = spec.kind in ("matrix", "head") or (spec.kind == "embedding" and "vocab" in spec.axes)
        if not in_products or not LOCAL_AXES.isdisjoint(spec.axes) or not rows - axes_of(stored):
            return w
        return jax.reshard(w, stored.update(reduced=rows - axes_of(stored)))

    return jax.tree.map(marked, specs, params)


def zeros(params: Any) -> Any:
    """Return gradients of 0 for parameters as `mark` leaves them."""

    def zero(w: jax.Array) -> jax.Array:
        stored = jax.typeof(w).sharding.spec
        if not stored.reduced:
            return jnp.zeros_like(w)
        nothing = jnp.zeros(w.shape, w.dtype, out_sharding=jax.P(*stored.partitions))
        return jax.reshard(nothing, jax.P(*stored.partitions, unreduced=stored.reduced))

    return jax.tree.map(zero, params)


def total(grads: Any) -> Any:
    """Return the gradients of parameters as `mark` leaves them, summed over all devices, where they are stored."""

    def summed(g: jax.Array) -> jax.Array:
        where = jax.typeof(g).sharding.spec
        return jax.reshard(g, jax.P(*where.partitions)) if where.unreduced else g

    return jax.tree.map(summed, grads)
