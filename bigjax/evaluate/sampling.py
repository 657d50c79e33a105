"""Drawing the next token from logits.

Legend: B batch, V vocab.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def sample(
    logits_BV: jax.Array,
    key: jax.Array,
    rows_B: jax.Array,
    temperature: Any,
    top_k: int | None,
    top_p: Any,
    min_p: Any = None,
) -> jax.Array:
    """Draw one token a row, `(B,)`, by the Gumbel-max trick; each row has its own key, `key` folded with its number."""
    logits_BV = warped(logits_BV, temperature, top_k, top_p, min_p)
    draw = partial(jax.random.gumbel, shape=logits_BV.shape[1:])
    noise_BV = jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows_B)
    return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)


def warped(logits_BV: jax.Array, temperature: Any, top_k: int | None, top_p: Any, min_p: Any = None) -> jax.Array:
    """Return the logits that are drawn from: divided by the temperature, -inf for tokens that are left out.

    Those are, as `generation.generate` has it: all but the `top_k` likeliest; of the rest, those beyond the probability
    `top_p`; and those with less than `min_p` of the likeliest one's. None leaves out none.
    """
    logits_BV = logits_BV / temperature
    lowest_B1 = jnp.full_like(logits_BV[:, :1], -jnp.inf)
    if min_p is not None:
        lowest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(min_p)
    if top_k is not None or top_p is not None:
        ranked_BV = jax.lax.top_k(logits_BV, min(top_k or logits_BV.shape[1], logits_BV.shape[1]))[0]
        cutoff_B1 = ranked_BV[:, -1:]
        if top_p is not None:
            probs = jax.nn.softmax(ranked_BV, axis=-1)
            before = jnp.cumsum(probs, axis=-1) - probs
            # Of the tokens that the nucleus has not yet reached p without, the least likely; the first always counts.
            inside = (before < top_p) | (jnp.arange(ranked_BV.shape[1]) == 0)
            cutoff_B1 = jnp.min(jnp.where(inside, ranked_BV, jnp.inf), axis=-1, keepdims=True)
        lowest_B1 = jnp.maximum(lowest_B1, cutoff_B1)
    return jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
