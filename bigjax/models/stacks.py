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
from bigjax.models import layers

Block = Callable[..., tuple[jax.Array, Any]]
"""`block(nth, x_BSD, layer, index)` returns the new hidden states and what the layer says of itself; `nth`, a number
known when the program is traced, is the place of the layer in its period, and `index`, traced, its place in the stack.
"""


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
