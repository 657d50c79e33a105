"""A decoder-only transformer that covers GPT-2/3 (Radford et al. 2019; Brown et al. 2020), the Llama family (Touvron
et al. 2023; Grattafiori et al. 2024) with Mistral and Qwen, and Gemma 2 (Gemma Team 2024) by configuration.

Legend: B batch, S sequence, T cached sequence, D model, F mlp, H heads, G kv heads, K head dim, V vocab, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal

from bigjax import params as param_tree
from bigjax.config import ModelConfig
from bigjax.models import attention, blocks, layers, moe
from bigjax.params import ParamSpec
from bigjax.sharding import UNSHARDED, Layout

Params = Any

HEAD_PIECES = 4
"""How many pieces of the output matrix a generated token is multiplied by, where the mesh does not split it."""


def specs(cfg: ModelConfig) -> dict:
    """Declare every parameter."""
    D, V = cfg.d_model, cfg.vocab_size
    sparse = cfg.num_layers // cfg.moe.every if cfg.moe.num_experts else 0
    embed = {"tokens": ParamSpec((V, D), ("vocab", "embed"), "embedding", normal(cfg.init_std))}
    if cfg.positions == "learned":
        shape = (cfg.max_seq_len, D)
        embed["positions"] = ParamSpec(shape, ("positions", "embed"), "embedding", normal(cfg.init_std))
    declared = {
        "embed": embed,
        "blocks": {
            **blocks.residual_norm_specs(cfg, "attn", cfg.num_layers),
            "attn": blocks.attention_specs(cfg, cfg.num_layers),
            **blocks.residual_norm_specs(cfg, "mlp", cfg.num_layers),
        },
    }
    if sparse < cfg.num_layers:
        declared["blocks"]["mlp"] = blocks.mlp_specs(cfg, cfg.num_layers - sparse)
    if sparse:
        declared["blocks"]["moe"] = moe.specs(cfg, sparse)
    if cfg.norm_placement != "post":
        declared["final_norm"] = blocks.norm_specs(cfg)
    if not cfg.tie_embeddings:
        declared["head"] = {"tokens": ParamSpec((V, D), ("vocab", "embed"), "head", normal(cfg.init_std))}
    return declared


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
) -> tuple[jax.Array, layers.Aux]:
    """Return the final hidden states `(B, S, D)` in the compute dtype, and what the layers say of themselves.

    The losses that sparse layers add are summed over them; their metrics are means, `moe/load` `(B, N, L, E)` apart.

    Args:
      params: as declared by `specs`; `params["blocks"]` may also be a list of one tree per layer.
      positions_BS: position of each token, restarting with each document; None counts from 0 along the row.
      segments_BS: document number of each token, 0 for padding; a token sees its own document only.
      key: draws dropout and what routers draw; None turns them off. rows_B: the global row of each example, needed
        with `key`.
    """
    rate = cfg.dropout if key is not None else 0.0
    attend = attention.select(
        cfg.attention,
        segments=segments_BS is not None,
        window=next((window for window in cfg.windows if window is not None), None),
        softcap=cfg.attn_softcap,
        dropout=rate,
        dtype=cfg.dtype,
    )
    embed_key = None if key is None else jax.random.fold_in(key, cfg.num_layers)
    x_BSD = embed(params, tokens_BS, positions_BS, cfg, layout)
    x_BSD = layers.dropout(x_BSD, rate, embed_key, rows_B)
    rope = _rope(positions_BS, tokens_BS.shape[1], cfg)

    def block(window: int | None, x, layer, index):
        keys: Any = (None, None, None)
        if rate:
            assert key is not None
            keys = jax.random.split(jax.random.fold_in(key, index), 3)
        probs_dropout = attention.ProbsDropout(rate, keys[0], rows_B) if rate and rows_B is not None else None
        mask = attention.Mask(segments_BS, window)

        def self_attend(q, k, v):
            return attend(q, k, v, mask, softcap=cfg.attn_softcap, dropout=probs_dropout, layout=layout), None

        drop = [partial(layers.dropout, rate=rate, key=k, rows_B=rows_B) for k in keys[1:]]
        router_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, index), 3)
        route = partial(moe.apply, key=router_key, rows_B=rows_B, segments_BS=segments_BS)
        x, (_, aux) = _block(x, layer, cfg, layout, rope, self_attend, drop, route)
        return x, aux

    stacked = params["blocks"]
    in_loop = cfg.layers == "scan" and not isinstance(stacked, list)
    if in_loop:
        x_BSD, added = _scan(block, x_BSD, stacked, cfg)
    else:
        listed = stacked if isinstance(stacked, list) else param_tree.unstack(stacked)
        kept = []
        for index, (window, layer) in enumerate(zip(cfg.windows, listed, strict=True)):
            remade = layers.rematerialised(partial(block, window), cfg.remat, in_loop=False)
            # Without the barrier XLA's CPU compiler recomputes the residual stream inside later fusions.
            x_BSD, aux = jax.lax.optimization_barrier(remade(x_BSD, layer, index))
            kept.append(aux)
        added = param_tree.stack(kept)
    return final_norm(params, x_BSD, cfg), moe.over_layers(added)


def _scan(block: Callable[..., tuple], x_BSD: jax.Array, stacked: Any, cfg: ModelConfig) -> tuple[jax.Array, Any]:
    """Loop over the layers, one period at a time: what kind of layer it is, and its window, is known beforehand."""
    period = cfg.period

    def nth(i: int, x, group, first):
        # Sliced inside what is rematerialised, or the slices would be saved: all parameters once more.
        layer = group if period == 1 else param_tree.layer(group, i)
        return block(cfg.windows[i], x, layer, first + i)

    blocks_of_period = [layers.rematerialised(partial(nth, i), cfg.remat, in_loop=True) for i in range(period)]

    def step(x, xs):
        kept = []
        for nth_block in blocks_of_period:
            x, aux = nth_block(x, *xs)
            kept.append(aux)
        return x, param_tree.stack(kept)

    grouped = stacked
    if period > 1:
        periods = cfg.num_layers // period
        grouped = jax.tree.map(lambda w: w.reshape(periods, w.shape[0] // periods, *w.shape[1:]), stacked)
    x_BSD, added = jax.lax.scan(step, x_BSD, (grouped, jnp.arange(0, cfg.num_layers, period)))
    return x_BSD, jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), added)


def embed(params: Params, tokens_BS, positions_BS, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Look tokens (and learned positions) up: `(B, S, D)` in the compute dtype."""
    declared = specs(cfg)["embed"]
    tables = layout.gather(params["embed"], declared, cfg.dtype)
    out_sharding = layout.act("batch", "residual_seq", "embed")
    x_BSD = tables["tokens"].at[tokens_BS].get(out_sharding=out_sharding)
    if cfg.scale_embeddings:  # rounded to the compute dtype, as in Gemma's released code
        x_BSD = x_BSD * jnp.asarray(cfg.d_model**0.5, x_BSD.dtype)
    if cfg.positions != "learned":
        return x_BSD
    if positions_BS is None:
        return x_BSD + layout.place(tables["positions"][: tokens_BS.shape[1]], "residual_seq", "embed")
    return x_BSD + tables["positions"].at[positions_BS].get(out_sharding=out_sharding)


def final_norm(params: Params, x_BSD: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Normalise the residual stream after the last block, unless every block ends with a norm."""
    if cfg.norm_placement == "post":
        return x_BSD
    return blocks.norm(x_BSD, jax.tree.map(lambda w: w.astype(cfg.dtype), params["final_norm"]), cfg)


def unembedding(params: Params, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Return the output matrix `(V, D)` in the compute dtype: the token table if tied, else the head."""
    owner = "embed" if cfg.tie_embeddings else "head"
    return layout.gather(params[owner]["tokens"], specs(cfg)[owner]["tokens"], cfg.dtype)


def logits(params: Params, x_BSD: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED) -> jax.Array:
    """Return logits `(B, S, V)` in float32, soft-capped if configured (Gemma Team 2024, section 2)."""
    x_BSD = layout.place(x_BSD, "batch", "seq", "embed")
    w_VD = unembedding(params, cfg, layout)
    out = jnp.einsum(
        "BSD,VD->BSV",
        x_BSD,
        w_VD,
        preferred_element_type=jnp.float32,
        out_sharding=layout.act("batch", "seq", "vocab"),
    )
    return layers.soft_cap(out, cfg.final_softcap)


def head_pieces(params: Params, cfg: ModelConfig, layout: Layout) -> list[jax.Array]:
    """Return the output matrix as `next_logits` reads it: transposed, `(D, V)`, in pieces along V.

    Reading `(V, D)` for one token takes a CPU twice as long, and it multiplies by several pieces at a time.
    """
    w_DV = jnp.swapaxes(unembedding(params, cfg, layout), 0, 1)
    whole = bool(layout.over("vocab")) or cfg.vocab_size % HEAD_PIECES
    return [w_DV] if whole else jnp.split(w_DV, HEAD_PIECES, axis=1)


def next_logits(pieces: list[jax.Array], x_BD: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED) -> jax.Array:
    """Return logits `(B, V)` in float32 of one position a row; the same numbers as `logits`."""
    multiply = partial(jnp.einsum, "BD,DV->BV", preferred_element_type=jnp.float32)
    out = [multiply(x_BD, w_DV, out_sharding=layout.act("batch", "vocab")) for w_DV in pieces]
    return layers.soft_cap(jnp.concatenate(out, axis=-1), cfg.final_softcap)


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
    nothing here and in `decode`, whatever their capacity: groups of one token have no room for chance, and what a
    token gets must not depend on the length of a prompt or on what comes after it.
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
    rope = _rope(positions_BS, tokens_BS.shape[1], cfg)
    kept, route = [], partial(moe.apply, segments_BS=segments, dropless=True)
    whole = (lambda y: y, lambda y: y)
    # Unrolled: a loop over stacked layers would copy its layer's weights and cache out of the stack for every token.
    for index, layer in enumerate(params["blocks"]):
        x_BSD, (kv, _) = _block(x_BSD, layer, cfg, layout, rope, partial(attend, index), whole, route)
        kept.append(kv)
    return final_norm(params, x_BSD, cfg), *zip(*kept, strict=True)


def _rope(positions_BS: jax.Array | None, seq_len: int, cfg: ModelConfig):
    if cfg.positions != "rotary":
        return None
    positions = jnp.arange(seq_len)[None] if positions_BS is None else positions_BS
    return layers.rope_tables(positions, cfg.rope, cfg.head_dim)


def _block(x_BSD, layer, cfg: ModelConfig, layout: Layout, rope, attend, drop, route):
    """One block; also what `attend(q, k, v)` returns besides the mixed values, and what the block adds to `Aux`.

    `route` is `moe.apply` with all but its first arguments, for a sparse block.
    """
    declared = specs(cfg)["blocks"]
    p = layout.gather(layer, {name: declared[name] for name in layer}, cfg.dtype)

    def attention(h):
        return blocks.attention(h, h, p["attn"], cfg, layout, rope, attend)

    def mlp(h):
        if "moe" in p:
            return route(h, p["moe"], cfg, layout)
        return blocks.mlp(h, p["mlp"], cfg, layout), {}

    x_BSD, kept = blocks.residual(x_BSD, "attn", p, cfg, layout, attention, drop[0])
    x_BSD, aux = blocks.residual(x_BSD, "mlp", p, cfg, layout, mlp, drop[1])
    return x_BSD, (kept, aux)
