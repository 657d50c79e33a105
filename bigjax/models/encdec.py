"""An encoder-decoder that covers the Transformer (Vaswani et al. 2017) and T5 (Raffel et al. 2020) by configuration.

Legend: B batch, S sequence that is read, T sequence that is written, D model, H heads, G kv heads, K head dim, V vocab.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal

from bigjax.config import Config, ModelConfig, recipes
from bigjax.config.fields import bounded
from bigjax.config.model import transformer_shape
from bigjax.models.attention import backends as attention
from bigjax.models.attention.backends import Mask
from bigjax.models.family import Family
from bigjax.models.moe import layers as moe
from bigjax.models.parts import blocks, layers, stacks
from bigjax.models.parts import positions as relative_positions
from bigjax.models.parts.heads import head_pieces, head_specs, logits, next_logits, unembedding
from bigjax.params import ParamSpec
from bigjax.sharding import UNSHARDED, Layout

Params = Any

POSITIONS = ("sinusoidal", "relative", "none")
"""The positions that an encoder-decoder can have."""


@dataclass(frozen=True)
class Fields:
    """The layers that write, 0 for as many as read, and what T5 has of its own (Raffel et al. 2020).

    `relative` positions are a learned bias on scores for each of `relative_buckets` ranges of distances, the last from
    `relative_max_distance` on; `scale_logits` divides the logits by sqrt(d_model).
    """

    num_decoder_layers: int = bounded(0, minimum=0)
    """Blocks of the stack that writes; 0 means as many as read."""
    relative_buckets: int = bounded(32, minimum=4)
    """How many ranges of distances have a bias of their own."""
    relative_max_distance: int = bounded(128, minimum=2)
    """From this distance on, in tokens, all have the last bias."""
    scale_logits: bool = False
    """Whether logits are divided by sqrt(d_model)."""


def problems(cfg: Config) -> Iterator[str]:
    """Yield one sentence for every field that contradicts the family."""
    model, data, train = cfg.model, cfg.data, cfg.train
    if model.positions not in POSITIONS:
        yield f"model.family='encdec' has model.positions={' or '.join(map(repr, POSITIONS))}, not {model.positions!r}"
    if not data.target_len:
        yield "data.target_len=0: model.family='encdec' needs the length of the rows that it writes"
    elif data.target_len % train.num_loss_chunks:
        yield (
            f"data.target_len={data.target_len} is not divisible by train.loss_chunks={train.loss_chunks}: set "
            f"train.loss_chunks={gcd(data.target_len, train.num_loss_chunks)}"
        )
    if min(data.seq_len, data.target_len or 2) < 2:
        yield f"data.seq_len={data.seq_len} or data.target_len={data.target_len} has no room for a token before the end"
    if model.positions == "relative":
        yield from _bucket_problems(model.own.relative_buckets, model.own.relative_max_distance)
    if model.parametrization == "mup" and model.own.scale_logits:
        yield (
            "model.parametrization='mup' sets the multipliers itself: model.encdec.scale_logits=True, a power of the "
            "width, must be False"
        )


def _bucket_problems(buckets: int, longest: int) -> Iterator[str]:
    if buckets % 2:
        yield f"model.encdec.relative_buckets={buckets} is odd, but half of them are for the keys after a query"
    if longest <= buckets // 2:
        yield (
            f"model.encdec.relative_max_distance={longest} must be above half of "
            f"model.encdec.relative_buckets={buckets}, the distances that have buckets of their own"
        )


def specs(cfg: ModelConfig) -> dict:
    """Declare every parameter; both sides share the token table (Vaswani et al. 2017, section 3.4)."""
    table = ParamSpec((cfg.vocab_size, cfg.d_model), ("vocab", "embed"), "embedding", normal(cfg.init_std))
    count = cfg.num_decoder_layers
    writing = {
        **blocks.residual_norm_specs(cfg, "attn", count),
        "attn": blocks.attention_specs(cfg, count),
        **blocks.residual_norm_specs(cfg, "cross", count),
        "cross": blocks.attention_specs(cfg, count),
        **blocks.feed_forward_specs(cfg, count),
    }
    return {
        "embed": {"tokens": table},
        "encoder": _stack_specs(cfg, blocks.transformer_specs(cfg, cfg.num_layers)),
        "decoder": _stack_specs(cfg, writing),
        **head_specs(cfg, layers.matrix_init(cfg, cfg.d_model)),
    }


def _stack_specs(cfg: ModelConfig, declared_blocks: dict) -> dict:
    declared: dict[str, Any] = {"relative": relative_positions.specs(cfg)} if cfg.positions == "relative" else {}
    declared["blocks"] = declared_blocks
    if cfg.norm_placement != "post":
        declared["final_norm"] = blocks.norm_specs(cfg)
    return declared


def apply(
    params: Params,
    tokens_BS: jax.Array,
    cfg: ModelConfig,
    *,
    inputs_BT: jax.Array,
    layout: Layout = UNSHARDED,
    positions_BS: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
    written_BT: jax.Array | None = None,
) -> tuple[jax.Array, layers.Aux]:
    """Return the decoder's hidden states `(B, T, D)` in the compute dtype, as `logits` needs them; and what sparse
    layers say of themselves, as `moe.over_layers` joins it, one piece a row, the encoder's layers first.

    Args:
      params: as declared by `specs`; either `blocks` may also be a list of one tree per layer.
      tokens_BS: what is read. inputs_BT: what is written, each token before the one to predict.
      positions_BS: of what is read, as for `encode`, and so segments_BS, which is 0 where that is padding. What is
        written is padded at the end, where nothing looks. written_BT: 0 there, so that padding goes to no expert.
      key: draws dropout and what routers draw; None turns them off. rows_B: the global row of each example, needed with
        `key`.
    """
    rate = cfg.dropout if key is not None else 0.0
    rows: dict[str, Any] = {"positions_BS": positions_BS, "segments_BS": segments_BS, "rows_B": rows_B}
    memory_BSD, read = encode(params, tokens_BS, cfg, layout=layout, key=key, **rows)
    if key is not None:
        key = jax.random.fold_in(key, cfg.num_layers + 1)  # the encoder uses the numbers below
    x_BTD = _embed(params, inputs_BT, None, cfg, layout)
    embed_key = None if key is None else jax.random.fold_in(key, 2 * cfg.num_decoder_layers)
    x_BTD = layers.dropout(x_BTD, rate, embed_key, rows_B)
    own_attend = blocks.attend_of(cfg, segments=False, dropout=rate)
    cross_attend = blocks.attend_of(cfg, segments=segments_BS is not None, dropout=rate, causal=False, cross=True)
    bias = _bias(params["decoder"], inputs_BT.shape[1], cfg, layout, causal=True)
    declared = specs(cfg)["decoder"]["blocks"]

    def block(nth, x, layer, index, cfg=cfg):
        del nth
        first, second = (blocks.drops(rate, key, 2 * index + half, rows_B) for half in (0, 1))

        def self_attend(q, k, v):
            return own_attend(q, k, v, Mask(), dropout=first.probs, bias_HST=bias, **common), None

        def attend_to_memory(q, k, v):
            mask = Mask(causal=False, key_segments_BT=segments_BS)
            return cross_attend(q, k, v, mask, dropout=second.probs, **common), None

        p = blocks.gathered(layer, declared, cfg, layout)
        outputs, route = [*first.outputs, second.outputs[0]], blocks.route_of(key, 2 * index, rows_B, written_BT)
        x, (_, said) = _decoder_block(x, memory_BSD, p, cfg, layout, self_attend, attend_to_memory, outputs, route)
        return x, said

    common = {"softcap": cfg.attn_softcap, "layout": layout}
    x_BTD, written = stacks.through(block, x_BTD, params["decoder"]["blocks"], cfg)
    real_BS = jnp.ones_like(tokens_BS) if segments_BS is None else segments_BS
    real_BT = jnp.ones_like(inputs_BT) if written_BT is None else written_BT
    return _final(params["decoder"], x_BTD, cfg), _joined(read, written, real_BS, real_BT)


def _joined(read: layers.Aux, written: layers.Aux, segments_BS: jax.Array, written_BT: jax.Array) -> layers.Aux:
    """Join what the layers of both stacks say, whose rows are of other lengths: a mean for each row and layer."""
    both = moe.per_row(read, segments_BS), moe.per_row(written, written_BT)
    return moe.over_layers(jax.tree.map(lambda *parts: jnp.concatenate(parts), *both))


def encode(
    params: Params,
    tokens_BS: jax.Array,
    cfg: ModelConfig,
    *,
    layout: Layout = UNSHARDED,
    positions_BS: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
    dropless: bool = False,
) -> tuple[jax.Array, layers.Aux]:
    """Return what the decoder attends to, `(B, S, D)`: the encoder's hidden states after its last norm; and what its
    sparse layers say, stacked.

    Distances between tokens are those along the row; `positions_BS` count for absolute positions only. `dropless` is as
    for `moe.apply`.
    """
    rate = cfg.dropout if key is not None else 0.0
    attend = blocks.attend_of(cfg, segments=segments_BS is not None, dropout=rate, causal=False)
    embed_key = None if key is None else jax.random.fold_in(key, cfg.num_layers)
    x_BSD = layers.dropout(_embed(params, tokens_BS, positions_BS, cfg, layout), rate, embed_key, rows_B)
    bias = _bias(params["encoder"], tokens_BS.shape[1], cfg, layout, causal=False)
    declared, mask = specs(cfg)["encoder"]["blocks"], Mask(segments_BS, causal=False)

    def block(nth, x, layer, index, cfg=cfg):
        del nth
        drops = blocks.drops(rate, key, index, rows_B)

        def self_attend(q, k, v):
            how = {"softcap": cfg.attn_softcap, "dropout": drops.probs, "bias_HST": bias, "layout": layout}
            return attend(q, k, v, mask, **how), None

        p = blocks.gathered(layer, declared, cfg, layout)
        route = partial(blocks.route_of(key, index, rows_B, segments_BS), dropless=dropless)
        x, (_, said) = blocks.transformer_block(x, p, cfg, layout, None, self_attend, drops.outputs, route)
        return x, said

    x_BSD, said = stacks.through(block, x_BSD, params["encoder"]["blocks"], cfg)
    return layout.place(blocks.final_norm(params["encoder"], x_BSD, cfg), "batch", "seq", "embed"), said


def _decoder_block(x_BTD, memory, p: dict, cfg: ModelConfig, layout: Layout, self_attend, cross_attend, outputs, route):
    """Take one block of self-attention, attention to `memory` and an MLP or experts; also return what `self_attend`
    keeps and what the block says of itself. The arguments are those of `blocks.transformer_block`.
    """

    def self_attention(h):
        return blocks.attention(h, h, p["attn"], cfg, layout, None, self_attend)

    def cross_attention(h):
        return blocks.attention(h, memory, p["cross"], cfg, layout, None, cross_attend)

    x_BTD, kept = blocks.residual(x_BTD, "attn", p, cfg, layout, self_attention, outputs[0])
    x_BTD, _ = blocks.residual(x_BTD, "cross", p, cfg, layout, cross_attention, outputs[1])
    x_BTD, said = blocks.feed_forward(x_BTD, p, cfg, layout, outputs[2], route)
    return x_BTD, (kept, said)


def _embed(params: Params, tokens_BS, positions_BS, cfg: ModelConfig, layout: Layout) -> jax.Array:
    tables = blocks.tables(params["embed"], specs(cfg)["embed"], cfg, layout)
    return blocks.look_up(tables, tokens_BS, positions_BS, cfg, layout)


def _bias(stack: Params, length: int, cfg: ModelConfig, layout: Layout, *, causal: bool) -> jax.Array | None:
    if cfg.positions != "relative":
        return None
    table_NH = layout.gather(stack["relative"], relative_positions.specs(cfg), cfg.dtype)
    return relative_positions.bias(table_NH, length, length, cfg, layout, causal=causal)


def _final(stack: Params, x_BTD: jax.Array, cfg: ModelConfig) -> jax.Array:
    x_BTD = blocks.final_norm(stack, x_BTD, cfg)
    return x_BTD * jnp.asarray(cfg.d_model**-0.5, x_BTD.dtype) if cfg.own.scale_logits else x_BTD


class Cache(NamedTuple):
    """What one token is written from, one array a layer, in the compute dtype.

    Attributes:
      k: `(B, G, K, N)` and v: `(B, G, N, K)`, of what is written so far, filled up to `length`.
      memory_k, memory_v: `(B, S, G, K)`, of what was read; segments_BS: 0 where that is padding.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    memory_k: tuple[jax.Array, ...]
    memory_v: tuple[jax.Array, ...]
    segments_BS: jax.Array
    length: jax.Array


def prefill(
    params: Params,
    tokens_BS: jax.Array,
    starts_B: jax.Array,
    max_len: int,
    cfg: ModelConfig,
    layout: Layout = UNSHARDED,
    *,
    start_id: Any,
) -> tuple[jax.Array, Cache]:
    """Read rows padded on the left and write `start_id`; return hidden states `(B, 1, D)` and the cache.

    The cache has room for `max_len` written tokens. Row b starts at position `starts_B[b]`; either `blocks` must be a
    list of one tree per layer. Sparse layers drop nothing here and in `decode`, as those of a decoder.
    """
    B, S = tokens_BS.shape
    positions_BS = jnp.maximum(jnp.arange(S) - starts_B[:, None], 0)
    segments_BS = (jnp.arange(S) >= starts_B[:, None]).astype(jnp.int32)
    rows = {"positions_BS": positions_BS, "segments_BS": segments_BS}
    memory, _ = encode(params, tokens_BS, cfg, layout=layout, dropless=True, **rows)
    declared, memory_k, memory_v = specs(cfg)["decoder"]["blocks"]["cross"], [], []
    for number, layer in enumerate(params["decoder"]["blocks"]):
        p = layout.gather(layer["cross"], declared, cfg.dtype)
        own = recipes.of_block(cfg, number, cfg.num_decoder_layers)
        k, v = attention.match_kv_heads(*blocks.keys_and_values(memory, p, own, layout), cfg.num_heads, layout)
        memory_k.append(k)
        memory_v.append(v)
    G, K = memory_k[0].shape[2:]
    empty = jnp.zeros((B, G, K, max_len), memory.dtype)
    own_k = layout.place(empty, "batch", "heads", "head_dim", "seq")
    own_v = layout.place(jnp.swapaxes(empty, 2, 3), "batch", "heads", "seq", "head_dim")
    count = len(memory_k)
    length = jnp.zeros((), jnp.int32)
    cache = Cache((own_k,) * count, (own_v,) * count, tuple(memory_k), tuple(memory_v), segments_BS, length)
    first_B1 = layout.place(jnp.full((B, 1), start_id, jnp.int32), "batch", "seq")
    return decode(params, first_B1, cache, cfg, layout)


def decode(
    params: Params, tokens_B1: jax.Array, cache: Cache, cfg: ModelConfig, layout: Layout = UNSHARDED
) -> tuple[jax.Array, Cache]:
    """Write the next token of each row; return hidden states `(B, 1, D)` and the longer cache."""
    index, room, stack = cache.length, cache.v[0].shape[2], params["decoder"]
    past_BN = jnp.broadcast_to(jnp.arange(room) < index, (tokens_B1.shape[0], room))
    bias = None
    if cfg.positions == "relative":
        table_NH = layout.gather(stack["relative"], relative_positions.specs(cfg), cfg.dtype)
        bias = relative_positions.bias_at(table_NH, index, room, cfg, layout)
    mask = Mask(causal=False, key_segments_BT=cache.segments_BS)

    def self_attend(layer: int, q, k, v):
        k, v = attention.match_kv_heads(k, v, cfg.num_heads, layout)
        caches = cache.k[layer], cache.v[layer]
        how: dict[str, Any] = {"softcap": cfg.attn_softcap, "bias_HT": bias, "layout": layout}
        return attention.cached(q, k, v, *caches, index, past_BN, **how)

    def attend_to_memory(layer: int, q, k, v):
        del k, v
        k, v = cache.memory_k[layer], cache.memory_v[layer]
        return attention.reference(q, k, v, mask, softcap=cfg.attn_softcap, layout=layout), None

    x_B1D = _embed(params, tokens_B1, jnp.broadcast_to(index, tokens_B1.shape), cfg, layout)
    declared, kept = specs(cfg)["decoder"]["blocks"], []
    for number, layer in enumerate(stack["blocks"]):
        p, own = blocks.gathered(layer, declared, cfg, layout), recipes.of_block(cfg, number, cfg.num_decoder_layers)
        attends = partial(self_attend, number), partial(attend_to_memory, number)
        route = partial(moe.apply, dropless=True)
        x_B1D, (kv, _) = _decoder_block(x_B1D, None, p, own, layout, *attends, [lambda y: y] * 3, route)
        kept.append(kv)
    k, v = zip(*kept, strict=True)
    return _final(stack, x_B1D, cfg), cache._replace(k=k, v=v, length=index + 1)


FAMILY = Family(
    specs=specs,
    apply=apply,
    logits=logits,
    unembedding=unembedding,
    head_pieces=head_pieces,
    next_logits=next_logits,
    prefill=prefill,
    decode=decode,
    encode=encode,
    fields=Fields,
    low_precision=True,
    derive=transformer_shape,
    problems=problems,
)
