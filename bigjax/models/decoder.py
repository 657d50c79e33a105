"""A decoder-only transformer that covers GPT-2/3 (Radford et al. 2019; Brown et al. 2020), the Llama family (Touvron
et al. 2023; Grattafiori et al. 2024) with Mistral and Qwen, and Gemma 2 (Gemma Team 2024) by configuration.

Legend: B batch, S sequence, T cached sequence, D model, F mlp, H heads, G kv heads, K head dim, V vocab, L layers.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal

from bigjax.config import ModelConfig, recipes
from bigjax.models.attention import backends as attention
from bigjax.models.moe import layers as moe
from bigjax.models.parts import blocks, layers, stacks
from bigjax.models.parts.heads import head_pieces, head_specs, logits, next_logits, unembedding
from bigjax.params import ParamSpec
from bigjax.sharding import UNSHARDED, Layout

__all__ = [  # what `family` declares of it, with what it shares with other models
    "apply",
    "decode",
    "embed",
    "head_pieces",
    "logits",
    "next_logits",
    "prefill",
    "specs",
    "unembedding",
]

Params = Any


def specs(cfg: ModelConfig) -> dict:
    """Declare every parameter."""
    D, V = cfg.d_model, cfg.vocab_size
    embed = {"tokens": ParamSpec((V, D), ("vocab", "embed"), "embedding", normal(cfg.init_std))}
    if cfg.positions == "learned":
        shape = (cfg.max_seq_len, D)
        embed["positions"] = ParamSpec(shape, ("positions", "embed"), "embedding", normal(cfg.init_std))
    declared = {
        "embed": embed,
        "blocks": blocks.transformer_specs(cfg, cfg.num_layers),
    }
    if cfg.norm_placement != "post":
        declared["final_norm"] = blocks.norm_specs(cfg)
    return declared | head_specs(cfg, normal(cfg.init_std))


def apply(
    params: Params,
    tokens_BS: jax.Array,
    cfg: ModelConfig,
    *,
    layout: Layout = UNSHARDED,
    positions_BS: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
    balanced: bool = False,
) -> tuple[jax.Array, layers.Aux]:
    """Return the final hidden states `(B, S, D)` in the compute dtype, and what sparse layers say of themselves.

    Args:
      params: as declared by `specs`; `params["blocks"]` may also be a list of one tree per layer.
      positions_BS: position of each token, restarting with each document; None counts from 0 along the row.
      segments_BS: document number of each token, 0 for padding; a token sees its own document only.
      key: draws dropout and what routers draw; None turns them off. rows_B: the global row of each example, needed
        with `key`.
      balanced: whether the tokens of a row come as `attention.order.balance` puts them; then the positions say where.

    Returns:
      Hidden states, and `Aux` as `moe.over_layers` joins it.
    """
    x_BSD = embed(params, tokens_BS, positions_BS, cfg, layout)
    rows = {"positions_BS": positions_BS, "segments_BS": segments_BS, "rows_B": rows_B, "balanced": balanced}
    return stacks.self_attention(params, specs(cfg)["blocks"], x_BSD, cfg, causal=True, layout=layout, key=key, **rows)


def embed(params: Params, tokens_BS, positions_BS, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Look tokens (and learned positions) up: `(B, S, D)` in the compute dtype."""
    tables = blocks.tables(params["embed"], specs(cfg)["embed"], cfg, layout)
    return blocks.look_up(tables, tokens_BS, positions_BS, cfg, layout)


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, one array a layer, in the compute dtype.

    Attributes:
      k: `(B, G, K, T)` and v: `(B, G, T, K)`, filled up to `length`: what one query multiplies is contiguous.
      length: number of filled positions. starts_B: first real position of each row (rows are padded on the left).
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array
    starts_B: jax.Array


def prefill(
    params: Params,
    tokens_BS: jax.Array,
    starts_B: jax.Array,
    max_len: int,
    cfg: ModelConfig,
    layout: Layout = UNSHARDED,
) -> tuple[jax.Array, Cache]:
    """Read prompts padded on the left; return hidden states `(B, S, D)` and a cache with room for `max_len` tokens.

    Row b starts at position `starts_B[b]`; `params["blocks"]` must be a list of one tree per layer. Sparse layers drop
    nothing here and in `decode`, whatever their capacity: what a token gets must not depend on how long the prompt is
    or what comes after it, and a group of the one token that is decoded has no meaning.
    """
    S = tokens_BS.shape[1]
    positions_BS = jnp.maximum(jnp.arange(S) - starts_B[:, None], 0)
    segments_BS = (jnp.arange(S) >= starts_B[:, None]).astype(jnp.int32)
    room = ((0, 0), (0, 0), (0, 0), (0, max_len - S))

    def attend(layer: int, q, k, v):
        k, v = attention.match_kv_heads(k, v, cfg.num_heads, layout)
        mask = attention.Mask(segments_BS, cfg.windows[layer])
        mixed = attention.blocked(q, k, v, mask, softcap=cfg.attn_softcap, layout=layout)
        k_BGKT = jnp.pad(jnp.transpose(k, (0, 2, 3, 1)), room)
        v_BGTK = jnp.pad(jnp.transpose(v, (0, 2, 1, 3)), (*room[:2], room[3], room[2]))
        return mixed, (k_BGKT, v_BGTK)

    x_BSD, k, v = _through_blocks(params, tokens_BS, positions_BS, cfg, layout, attend, segments_BS)
    return x_BSD, Cache(k, v, jnp.array(S, jnp.int32), starts_B)


def decode(
    params: Params, tokens_B1: jax.Array, cache: Cache, cfg: ModelConfig, layout: Layout = UNSHARDED
) -> tuple[jax.Array, Cache]:
    """Read the next token of each row; return hidden states `(B, 1, D)` and the longer cache."""
    index, positions_T = cache.length, jnp.arange(cache.v[0].shape[2])
    past_BT = (positions_T < index) & (positions_T >= cache.starts_B[:, None])

    def attend(layer: int, q, k, v):
        window = cfg.windows[layer]
        allowed_BT = past_BT if window is None else past_BT & (positions_T > index - window)
        k, v = attention.match_kv_heads(k, v, cfg.num_heads, layout)
        caches = cache.k[layer], cache.v[layer]
        return attention.cached(q, k, v, *caches, index, allowed_BT, softcap=cfg.attn_softcap, layout=layout)

    x_B1D, k, v = _through_blocks(params, tokens_B1, index - cache.starts_B[:, None], cfg, layout, attend)
    return x_B1D, Cache(k, v, index + 1, cache.starts_B)


def _through_blocks(params: Params, tokens_BS, positions_BS, cfg: ModelConfig, layout: Layout, attend, segments=None):
    """Return the final hidden states and what `attend(layer, q, k, v)` keeps of each layer, all k and all v."""
    x_BSD = embed(params, tokens_BS, positions_BS, cfg, layout)
    rope, declared = blocks.rope(positions_BS, tokens_BS.shape[1], cfg), specs(cfg)["blocks"]
    kept, whole, route = [], [lambda y: y] * 2, partial(moe.apply, segments_BS=segments, dropless=True)
    # Unrolled: a loop over stacked layers would copy its layer's weights and cache out of the stack for every token.
    for index, layer in enumerate(params["blocks"]):
        p, own = blocks.gathered(layer, declared, cfg, layout), recipes.of_block(cfg, index, cfg.num_layers)
        x_BSD, (kv, _) = blocks.transformer_block(x_BSD, p, own, layout, rope, partial(attend, index), whole, route)
        kept.append(kv)
    return blocks.final_norm(params, x_BSD, cfg), *zip(*kept, strict=True)
