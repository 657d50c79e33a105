"""Relative positions as T5 has them: a learned number for every head and bucket of distances, added to the scores.

Legend: S queries, T keys, H heads, N buckets.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.config import ModelConfig
from bigjax.models.parts.layers import matrix_init
from bigjax.params import ParamSpec
from bigjax.sharding import Layout


def specs(cfg: ModelConfig) -> ParamSpec:
    """Declare the table of one stack, which all its layers share."""
    shape = (cfg.own.relative_buckets, cfg.num_heads)
    return ParamSpec(shape, ("buckets", "heads"), "embedding", matrix_init(cfg, cfg.d_model))


def buckets(cfg: ModelConfig, *, causal: bool) -> np.ndarray:
    """Return the bucket of every distance, key minus query, from -`relative_max_distance` to as much above 0.

    Half of the buckets of a direction stand for one distance each, the others for ranges that grow exponentially, the
    last for everything beyond (Raffel et al. 2020, section 2.1, and their code). Both directions share the buckets
    evenly; with `causal` all are for keys before the query, and keys after it are in bucket 0.
    """
    return _buckets(cfg.own.relative_buckets, cfg.own.relative_max_distance, causal)


@lru_cache
def _buckets(count: int, longest: int, causal: bool) -> np.ndarray:
    side = count if causal else count // 2
    exact = side // 2
    # In float32, as in the code that released models were trained with: at a border the rounding decides.
    distance = np.arange(longest + 1, dtype=np.float32)
    growth = np.log(np.maximum(distance, 1) / np.float32(exact)) / np.float32(np.log(longest / exact))
    far = exact + (growth * np.float32(side - exact)).astype(np.int32)
    one_side = np.where(distance < exact, distance.astype(np.int32), np.minimum(far, side - 1))
    after = np.zeros(longest, np.int32) if causal else side + one_side[1:]
    return np.concatenate([one_side[::-1], after])


def bias(table_NH: jax.Array, num_queries: int, num_keys: int, cfg: ModelConfig, layout: Layout, *, causal: bool):
    """Return what is added to the scores of queries and keys that both count from 0, `(H, S, T)` in float32."""
    S, T, length = num_queries, num_keys, num_queries + num_keys
    # One number for each distance, those below 0 at the end of the array; then row i is the array turned by i.
    distances = np.concatenate([np.arange(T), np.arange(-S, 0)])
    line_HL = _look_up(table_NH, distances, cfg, layout, causal)
    turned = jnp.broadcast_to(line_HL[:, None], (line_HL.shape[0], S, length)).reshape(-1, S * length)
    turned = turned[:, : S * (length - 1)].reshape(-1, S, length - 1)[:, :, :T]
    return layout.place(turned, "heads", "seq", "seq")


def bias_at(table_NH: jax.Array, query: jax.Array, num_keys: int, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Return one causal row of `bias`, `(H, T)`, for the query at a traced position."""
    return _look_up(table_NH, jnp.arange(num_keys) - query, cfg, layout, True)


def _look_up(table_NH: jax.Array, distances, cfg: ModelConfig, layout: Layout, causal: bool) -> jax.Array:
    longest = cfg.own.relative_max_distance
    chosen = jnp.asarray(buckets(cfg, causal=causal))[jnp.clip(distances, -longest, longest) + longest]
    # A product with one-hot rows: the gradient of a look-up would be a scatter.
    one_hot = jax.nn.one_hot(chosen, cfg.own.relative_buckets, dtype=jnp.float32)
    return jnp.einsum("LN,NH->HL", one_hot, table_NH.astype(jnp.float32), out_sharding=layout.act("heads", "seq"))
