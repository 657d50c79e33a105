"""Through a stack of layers, in a compiled loop or one by one.

Legend: B batch, S sequence, D model, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bigjax import params as param_tree
from bigjax.config import ModelConfig, recipes
from bigjax.config import pipeline as schedule
from bigjax.models.attention import context
from bigjax.models.attention.masks import Mask
from bigjax.models.moe import layers as moe
from bigjax.models.parts import blocks, layers, pipeline
from bigjax.sharding import Layout, ShardingError

Block = Callable[..., tuple[jax.Array, Any]]
"""`block(nth, x_BSD, layer, index)` returns the new hidden states and what the layer says of itself; `nth`, a number
known when the program is traced, is the place of the layer in its period, and `index`, traced, its place in the stack.
A keyword `cfg` gives it another config than the model's.
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

    def block_of(layout: Layout, rope, segments_BS, rows_B) -> Block:
        def block(nth, x, layer, index, cfg=cfg):
            drops, mask = blocks.drops(rate, key, index, rows_B), Mask(segments_BS, cfg.windows[nth], causal)

            def attend_to_row(q, k, v):
                return attend(q, k, v, mask, softcap=cfg.attn_softcap, dropout=drops.probs, layout=layout), None

            p = blocks.gathered(layer, declared, cfg, layout)
            route = blocks.route_of(key, index, rows_B, segments_BS, balanced)
            x, (_, said) = blocks.transformer_block(x, p, cfg, layout, rope, attend_to_row, drops.outputs, route)
            return x, said

        return block

    rope = partial(blocks.rope, seq_len=x_BSD.shape[1], cfg=cfg)
    if layout.stages > 1:
        rows = {"positions": positions_BS, "segments": segments_BS, "rows": rows_B}
        x_BSD, said = _in_stages(block_of, rope, x_BSD, params["blocks"], rows, cfg, layout)
    else:
        block = block_of(layout, rope(positions_BS), segments_BS, rows_B)
        x_BSD, said = through(block, x_BSD, params["blocks"], cfg)
    return blocks.final_norm(params, x_BSD, cfg), moe.over_layers(said)


def _in_stages(block_of, rope, x_BSD, stacked: Any, rows: dict, cfg: ModelConfig, layout: Layout):
    """As `through`, with the layers in the stages of a pipeline."""
    period, repeats = cfg.period, layout.pipeline_repeats
    if problem := schedule.layers_problem(cfg.num_layers, layout.stages, repeats, period):
        raise ShardingError(problem)
    length = cfg.num_layers // (layout.stages * repeats)
    runs = jax.tree.map(partial(pipeline.runs, layout=layout), stacked)
    stage_P = jax.reshard(jnp.arange(layout.stages), jax.P("stage"))

    def run(x_PRSD, repeat_P, rows):
        first_P = (repeat_P * layout.stages + stage_P) * length
        rope_P = None if rows["positions"] is None else over_stages(rope)(rows["positions"])

        def one(nth, x, layer, own_rope, segments, rows, index):
            turns = rope(None) if own_rope is None else own_rope
            return block_of(layout.of_stage(), turns, segments, rows)(nth, x, layer, index)

        def block(nth, x_PRSD, layer_P, index):
            rows_P = rope_P, rows["segments"], rows["rows"]
            return over_stages(partial(one, nth))(x_PRSD, layer_P, *rows_P, first_P + index)

        def chosen(nth, x_PRSD, place, index):
            # Sliced here, inside what is rematerialised, or the slices of every tick would be saved.
            group = jax.tree.map(lambda w: one_group(w, repeat_P, place["place"] // period), runs)
            return block(nth, x_PRSD, param_tree.layer(group, nth), index)

        if repeats == 1:
            return through(block, x_PRSD, jax.tree.map(lambda w: w[0], runs), cfg)
        return through(chosen, x_PRSD, {"place": jnp.arange(length)}, cfg)

    def one_group(w, repeat_P, group):
        size = w.shape[1] * period // length
        return pipeline.of_repeat(w, repeat_P, group * size, size)

    over_stages = partial(jax.vmap, spmd_axis_name="stage")
    return pipeline.through(run, x_BSD, rows, layout)


def through(block: Block, x_BSD: jax.Array, stacked: Any, cfg: ModelConfig) -> tuple[jax.Array, Any]:
    """Return the hidden states after all layers, and what those that say something say of themselves, stacked.

    Args:
      stacked: a tree of `(L, ...)` arrays, or a list of one tree per layer.
      cfg: its `period` is the number of layers after which their kinds repeat; a compiled loop takes one at a time.
    """
    if cfg.layers == "scan" and not isinstance(stacked, list):
        if cfg.matmul_spared_blocks:
            return _with_spared_ends(block, x_BSD, stacked, cfg)
        x_BSD, said = _loop(block, x_BSD, stacked, cfg)
    else:
        listed = stacked if isinstance(stacked, list) else param_tree.unstack(stacked)
        kept = []
        for index, layer in enumerate(listed):
            own = recipes.of_block(cfg, index, len(listed))
            one_block = block if own is cfg else partial(block, cfg=own)
            remade = layers.rematerialised(partial(one_block, index % cfg.period), own, in_loop=False)
            # Without the barrier XLA's CPU compiler recomputes the residual stream inside later fusions.
            x_BSD, one = jax.lax.optimization_barrier(remade(x_BSD, layer, index))
            kept.append(one)
        said = param_tree.stack(kept)
    return x_BSD, said


def _with_spared_ends(block: Block, x_BSD: jax.Array, stacked: Any, cfg: ModelConfig) -> tuple[jax.Array, Any]:
    """Return what `_loop` does, in a loop for the first blocks, which the recipe spares, one for others, and the last.

    Of each stack, which may hold every second layer, a loop takes as large a share.
    """
    depth, ends = param_tree.num_layers(stacked), cfg.matmul_spared_blocks
    said = []
    for first, last in ((0, ends), (ends, depth - ends), (depth - ends, depth)):
        own = recipes.of_block(cfg, first, depth)
        part = jax.tree.map(lambda w: w[first * len(w) // depth : last * len(w) // depth], stacked)  # noqa: B023
        x_BSD, one = _loop(partial(block, cfg=own), x_BSD, part, own, first)
        said.append(one)
    return x_BSD, jax.tree.map(lambda *parts: jnp.concatenate(parts), *said)


def _loop(block: Block, x_BSD: jax.Array, stacked: Any, cfg: ModelConfig, start: int = 0) -> tuple[jax.Array, Any]:
    num_layers, period = param_tree.num_layers(stacked), cfg.period

    def nth(place: int, x, group, first):
        # Sliced inside what is rematerialised, or the slices would be saved: all parameters once more.
        layer = group if period == 1 else param_tree.layer(group, place)
        return block(place, x, layer, first + place)

    blocks_of_period = [layers.rematerialised(partial(nth, i), cfg, in_loop=True) for i in range(period)]

    def step(x, group_and_first):
        kept = []
        for nth_block in blocks_of_period:
            x, one = nth_block(x, *group_and_first)
            kept.append(one)
        return x, param_tree.stack(kept)

    groups = stacked
    if period > 1:
        count = num_layers // period
        groups = jax.tree.map(partial(_in_groups, count=count), stacked)
    x_BSD, said = jax.lax.scan(step, x_BSD, (groups, jnp.arange(start, start + num_layers, period)))
    return x_BSD, jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), said)


def _in_groups(w: jax.Array, count: int) -> jax.Array:
    """Return `(L, ...)` as `(count, L / count, ...)`."""
    shape, spec = (count, w.shape[0] // count, *w.shape[1:]), jax.typeof(w).sharding.spec
    if not spec.reduced:
        return w.reshape(shape)
    # JAX does not work out by itself where the result of every such reshape lies.
    return jax.lax.reshape(w, shape, out_sharding=jax.P(None, *spec.partitions, reduced=spec.reduced))
