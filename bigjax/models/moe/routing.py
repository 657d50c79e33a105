"""Which experts each token of one group goes to: the routers of GShard, Switch and Mixtral.

Everything here is of one group of S tokens and in float32; nothing depends on devices.
Legend: S tokens of a group, E experts, K choices of a token, C capacity of an expert.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigjax.config import MoeConfig


class Routing(NamedTuple):
    """What the router decides about a group.

    Attributes:
      experts: `(S, K)`, the experts of each token, the best first.
      weights: `(S, K)`, their weights in the sum; 0 for a choice that is not dispatched.
      slots: `(S, K)`, the place of each choice in its expert's buffer; meaningless without a capacity.
      kept: `(S, K)`, whether the choice is dispatched.
      aux_loss, z_loss, entropy, dropped: of the group, scalars. load: `(E,)`.
    """

    experts: jax.Array
    weights: jax.Array
    slots: jax.Array
    kept: jax.Array
    aux_loss: jax.Array
    z_loss: jax.Array
    entropy: jax.Array
    dropped: jax.Array
    load: jax.Array


OF_TOKENS = ("experts", "weights", "slots", "kept")
"""The fields of a `Routing` that say something of each token."""


def capacity(cfg: MoeConfig, group_size: int) -> int | None:
    """Return how many tokens of a group an expert takes (Fedus et al. 2022, equation 3); None: all that choose it.

    At least one, and at most the group: no token chooses an expert twice.
    """
    if cfg.capacity_factor is None:
        return None
    # A product such as 1.1 * 10 is a little above 11.
    room = cfg.capacity_factor * group_size / cfg.num_experts - 1e-9
    return math.ceil(min(max(room, 1), group_size))


def route(
    logits_SE: jax.Array, real_S: jax.Array, uniform_S: jax.Array | None, cfg: MoeConfig, capacity: int | None
) -> Routing:
    """Choose experts for the tokens of one group from the router's logits.

    gshard: Lepikhin et al. 2020, algorithm 1, as printed: the two best gates are normalised by their sum; every first
    choice takes a place in its expert's buffer in the order of the tokens, then every second choice does, whether it
    is dispatched or not; a second choice is dispatched if 2 g2 is above a uniform random number. The algorithm is one
    of training and the paper says nothing of evaluation: without `uniform_S` the second choice is always dispatched.
    switch: Fedus et al. 2022, section 2.1: the best expert, with its probability as weight.
    topk: Jiang et al. 2024, section 2.1: the softmax of the k best logits; with a capacity, places are taken as above.

    A choice whose place is beyond `capacity` is dropped. Of equal gates the lower expert comes first.

    Args:
      real_S: bools; what is not real (padding) takes no place and counts in no mean. uniform_S: in [0, 1).
    """
    K, E = cfg.experts_per_token, cfg.num_experts
    gates_SE = jax.nn.softmax(logits_SE, axis=-1)
    best_SK, experts_SK = jax.lax.top_k(gates_SE, K)
    weights_SK = best_SK if cfg.router == "switch" else best_SK / best_SK.sum(axis=-1, keepdims=True)
    slots_SK = places(jnp.where(real_S[:, None], experts_SK, E), E)
    wanted_SK = jnp.broadcast_to(real_S[:, None], (S := len(real_S), K))
    if cfg.router == "gshard" and uniform_S is not None:
        wanted_SK &= jnp.stack([jnp.ones(S, bool), 2 * weights_SK[:, 1] > uniform_S], axis=1)
    kept_SK = wanted_SK if capacity is None else wanted_SK & (slots_SK < capacity)

    tokens = jnp.maximum(real_S.sum(), 1)
    chosen_SKE = experts_SK[..., None] == jnp.arange(E)
    share_KE = jnp.sum(chosen_SKE & real_S[:, None, None], axis=0) / tokens
    mean = lambda x_S: jnp.sum(jnp.where(real_S, x_S, 0)) / tokens  # noqa: E731
    log_gates_SE = jax.nn.log_softmax(logits_SE, axis=-1)
    return Routing(
        experts=experts_SK,
        weights=jnp.where(kept_SK, weights_SK, 0),
        slots=slots_SK,
        kept=kept_SK,
        aux_loss=balance(cfg, share_KE, jnp.sum(jnp.where(real_S[:, None], gates_SE, 0), axis=0) / tokens),
        z_loss=mean(jnp.square(jax.nn.logsumexp(logits_SE, axis=-1))),
        entropy=mean(-jnp.sum(gates_SE * log_gates_SE, axis=-1)),
        dropped=jnp.sum(wanted_SK & ~kept_SK) / (tokens * K),
        load=share_KE.mean(axis=0),
    )


def balance(cfg: MoeConfig, share_KE: jax.Array, gates_E: jax.Array) -> jax.Array:
    """Return the loss that is least when all experts are chosen equally often.

    From the share of tokens whose k-th choice is each expert, dropped or not, and the mean gates:
    gshard: the mean over the experts of share times gate, of first choices (Lepikhin et al. 2020, algorithm 1, line
    13). switch: E times their sum (Fedus et al. 2022, equation 4). topk: the same, summed over the choices, as
    Mixtral's published code has it.
    """
    if cfg.router == "gshard":
        return jnp.mean(share_KE[0] * gates_E)
    return cfg.num_experts * jnp.sum(share_KE * gates_E)


def places(experts_SK: jax.Array, num_experts: int) -> jax.Array:
    """Number the choices of each expert from 0: all first choices in the order of the tokens, then the second, ...

    Experts of `num_experts` and above are no experts; their numbers mean nothing.
    """
    choices = experts_SK.T.reshape(-1)  # the k-th choices of all tokens before any (k + 1)-th
    order = jnp.argsort(choices, stable=True)
    rank = jnp.argsort(order)
    first_E = jnp.searchsorted(choices[order], jnp.arange(num_experts + 1))
    return (rank - first_E[choices]).reshape(experts_SK.T.shape).T
