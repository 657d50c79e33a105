"""Tokens to the devices that hold their experts and back, inside a `shard_map`: one device's part of a sparse layer.

Legend: T tokens on this device, R groups, S tokens of a group, E experts, K choices of a token, C capacity, D model.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from bigjax.models.moe.routing import Routing
from bigjax.models.parts import products

Axes = tuple[str, ...]
"""Mesh axes, empty where the mesh does not split."""

Experts = Callable[..., jax.Array]
"""`experts(x, multiply)` maps tokens through the expert networks; `multiply(x, w, cfg, split)` is the product with
`(E, ...)`, of `parts.products`."""


def with_capacity(x_RSD: jax.Array, routing: Routing, capacity: int, experts: Experts, num_experts: int, axis: Axes):
    """Return what the experts make of the tokens, `(R, S, D)`, each with a buffer of `capacity` tokens of a group.

    Every device fills buffers for all experts from its own groups; an all-to-all over `axis` brings each buffer to the
    device that holds its expert, and another one the results back. What is dropped does not depend on the mesh.
    """
    R, S, D = x_RSD.shape
    E, C, K = num_experts, capacity, routing.experts.shape[-1]
    rows = E * C
    slots_RSK = jnp.where(routing.kept, routing.experts * C + routing.slots, rows)
    choices = jnp.broadcast_to(jnp.arange(S * K).reshape(S, K), slots_RSK.shape)

    def fill(slots_SK, choices_SK):
        empty = jnp.full(rows, S * K)
        return empty.at[slots_SK.reshape(-1)].set(choices_SK.reshape(-1), mode="drop")

    choice_RQ = jax.vmap(fill)(slots_RSK, choices)  # of each slot; S * K where it is empty
    x_RQD = jax.vmap(move)(x_RSD, choice_RQ // K, slots_RSK)
    x = x_RQD.reshape(R, E, C, D)
    if axis:
        x = jax.lax.all_to_all(x, axis, split_axis=1, concat_axis=0, tiled=True)
    y = experts(x, products.of_experts)
    if axis:
        y = jax.lax.all_to_all(y, axis, split_axis=0, concat_axis=1, tiled=True)
    y_RQD = jax.vmap(move)(y.reshape(R, rows, D), slots_RSK.reshape(R, S * K), choice_RQ[..., None])
    return _weighted(y_RQD.reshape(R, S, K, D), routing.weights)


def dropless(x_RSD: jax.Array, routing: Routing, experts: Experts, num_experts: int, axis: Axes) -> jax.Array:
    """Return what the experts make of the tokens, `(R, S, D)`, however many choose each, by `jax.lax.ragged_dot`.

    Any device may need all tokens, and shapes are static. So every device gathers the tokens of all devices along
    `axis`, sorts those of its own experts to the front, and the results are summed to where they came from: the traffic
    of an all-to-all whose buffers hold the worst case. (`ragged_all_to_all` sends less, and does not run on CPUs.)
    """
    R, S, D = x_RSD.shape
    K = routing.experts.shape[-1]
    x_TD, experts_TK, weights_TK = (a.reshape(R * S, -1) for a in (x_RSD, routing.experts, routing.weights))
    first, held = 0, num_experts
    if axis:
        gather = partial(jax.lax.all_gather, axis_name=axis, tiled=True)
        x_TD, experts_TK, weights_TK = gather(x_TD), gather(experts_TK), gather(weights_TK)
        held = num_experts // jax.lax.axis_size(axis)
        first = jax.lax.axis_index(axis) * held
    own_TK = experts_TK - first
    own_TK = jnp.where((own_TK >= 0) & (own_TK < held) & (weights_TK > 0), own_TK, held)
    if held < K:  # a token chooses an expert once, so no more than `held` of its choices are this device's
        mine_TK = jnp.argsort(own_TK == held, axis=-1, stable=True)[:, :held]
        own_TK, weights_TK = (jnp.take_along_axis(x, mine_TK, axis=-1) for x in (own_TK, weights_TK))
        K = held
    own_TK = own_TK.reshape(-1)
    order = jnp.argsort(own_TK, stable=True)  # choices in the order of their experts, those of other devices last
    sizes_E = jnp.bincount(own_TK, length=held + 1)[:held]
    mine_Q = jnp.arange(len(order)) < sizes_E.sum()
    rank_TK = jnp.argsort(order).reshape(-1, K)
    inside_TK = (own_TK < held).reshape(-1, K)
    back_TK = jnp.where(inside_TK, rank_TK, len(order))
    source_Q = jnp.where(mine_Q, order, len(order))
    x_QD = move(x_TD, source_Q // K, back_TK)
    y_QD = experts(x_QD, partial(products.grouped, sizes_E=sizes_E))
    y_TKD = move(y_QD, back_TK.reshape(-1), source_Q[:, None]).reshape(-1, K, D)
    y_TD = _weighted(y_TKD, jnp.where(inside_TK, weights_TK, 0))
    if axis:
        y_TD = jax.lax.psum_scatter(y_TD, axis, scatter_dimension=0, tiled=True)
    return y_TD.reshape(R, S, D)


def _weighted(y: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum over the choices, `(..., K, D)` to `(..., D)`, in float32."""
    summed = jnp.einsum("...KD,...K->...D", y, weights, preferred_element_type=jnp.float32)
    return summed.astype(y.dtype)


@jax.custom_vjp
def move(x_PD: jax.Array, source_Q: jax.Array, targets_PK: jax.Array) -> jax.Array:
    """Return row `source_Q[q]` of `x_PD` for each q, and zeros where there is no such row.

    `targets_PK` says the same the other way round: the rows of the result that each row of `x_PD` goes to. With it the
    gradient, too, is read in order, where that of an index would be scattered.
    """
    return x_PD.at[source_Q].get(mode="fill", fill_value=0)


def _move_forward(x_PD, source_Q, targets_PK):
    return move(x_PD, source_Q, targets_PK), targets_PK


def _move_backward(targets_PK, dy_QD):
    return dy_QD.at[targets_PK].get(mode="fill", fill_value=0).sum(axis=-2), None, None


move.defvjp(_move_forward, _move_backward)
