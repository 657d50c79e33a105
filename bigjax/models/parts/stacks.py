"""Through a stack of layers, in a compiled loop or one by one.

Legend: B batch, S sequence, D model, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bigjax import params as param_tree
from bigjax.config import ModelConfig
from bigjax.models.attention import context
from bigjax.models.attention.masks import Mask
from bigjax.models.moe import layers as moe
from bigjax.models.parts import blocks, layers
from bigjax.sharding import Layout

Block = Callable[..., tuple[jax.Array, Any]]
"""`block(nth, x_BSD, layer, index)` returns the new hidden states and what the layer says of itself; `nth`, a number
known when the program is traced, is the place of the layer in its period, and `index`, traced, its place in the stack.
"""


def self_attention(
    params: Any,
    declared: dict,
    x_BSD: jax.Array,
    cfg: ModelConfig,
    *,
    causal: bool,
    layout: Layout,
    positions_BS: jax.Array | None,
    segments_BS: jax.Array | None,
    key: jax.Array | None,
    rows_B: jax.Array | None,
    balanced: bool = False,
) -> tuple[jax.Array, layers.Aux]:
    """Take embeddings through the blocks of a decoder (`causal`) or an encoder, and their last norm.

    Args:
      params: of the model. declared: the specs of its `blocks`. Others as `decoder.apply` has them.

    Returns:
      Hidden states `(B, S, D)`, and `Aux` as `moe.over_layers` joins it.
    """
    rate = cfg.dropout if key is not None else 0.0
    attend = blocks.attend_of(cfg, segments=segments_BS is not None, dropout=rate, causal=causal)
    embed_key = None if key is None else jax.random.fold_in(key, cfg.num_layers)
    x_BSD = layers.dropout(x_BSD, rate, embed_key, rows_B)
    if context.resolved(cfg, layout, x_BSD.shape[1]):
        assert positions_BS is not None or not balanced
        attend = partial(context.attend, cfg=cfg, balanced=balanced)
    rope = blocks.rope(positions_BS, x_BSD.shape[1], cfg)

    def block(nth, x, layer, index):
        drops, mask = blocks.drops(rate, key, index, rows_B), Mask(segments_BS, cfg.windows[nth], causal)

        def attend_to_row(q, k, v):
            return attend(q, k, v, mask, softcap=cfg.attn_softcap, dropout=drops.probs, layout=layout), None

        p = blocks.gathered(layer, declared, cfg, layout)
        route = blocks.route_of(key, index, rows_B, segments_BS, balanced)
        x, (_, said) = blocks.transformer_block(x, p, cfg, layout, rope, attend_to_row, drops.outputs, route)
        return x, said

    x_BSD, said = through(block, x_BSD, params["blocks"], cfg)
    return blocks.final_norm(params, x_BSD, cfg), moe.over_layers(said)


def through(block: Block, x_BSD: jax.Array, stacked: Any, cfg: ModelConfig) -> tuple[jax.Array, Any]:
    """Return the hidden states after all layers, and what those that say something say of themselves, stacked.

    Args:
      stacked: a tree of `(L, ...)` arrays, or a list of one tree per layer.
      cfg: its `period` is the number of layers after which their kinds repeat; a compiled loop takes one at a time.
    """
    if cfg.layers == "scan" and not isinstance(stacked, list):
        x_BSD, said = _loop(block, x_BSD, stacked, cfg)
    else:
        listed = stacked if isinstance(stacked, list) else param_tree.unstack(stacked)
        kept = []
        for index, layer in enumerate(listed):
            remade = layers.rematerialised(partial(block, index % cfg.period), cfg.remat, in_loop=False)
            # Without the barrier XLA's CPU compiler recomputes the residual stream inside later fusions.
            x_BSD, one = jax.lax.optimization_barrier(remade(x_BSD, layer, index))
            kept.append(one)
        said = param_tree.stack(kept)
    return x_BSD, said


def _loop(block: Block, x_BSD: jax.Array, stacked: Any, cfg: ModelConfig) -> tuple[jax.Array, Any]:
    num_layers, period = param_tree.num_layers(stacked), cfg.period

    def nth(place: int, x, group, first):
        # Sliced inside what is rematerialised, or the slices would be saved: all parameters once more.
        layer = group if period == 1 else param_tree.layer(group, place)
        return block(place, x, layer, first + place)

    blocks_of_period = [layers.rematerialised(partial(nth, i), cfg.remat, in_loop=True) for i in range(period)]

    def step(x, group_and_first):
        kept = []
        for nth_block in blocks_of_period:
            x, one = nth_block(x, *group_and_first)
            kept.append(one)
        return x, param_tree.stack(kept)

    groups = stacked
    if period > 1:
        count = num_layers // period
        groups = jax.tree.map(lambda w: w.reshape(count, w.shape[0] // count, *w.shape[1:]), stacked)
    x_BSD, said = jax.lax.scan(step, x_BSD, (groups, jnp.arange(0, num_layers, period)))
    return x_BSD, jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), said)
