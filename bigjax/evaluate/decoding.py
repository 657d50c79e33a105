"""What sampling and beam search share: parameters as a loop over tokens reads them, prompts in arrays, the first step.

Legend: B batch, S prompt, D model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import params as param_tree
from bigjax.config import BATCH_AXES
from bigjax.models import Model
from bigjax.sharding import Layout

MIN_BUCKET = 32
"""The shortest padded prompt and the shortest buffer of new tokens."""


@dataclass(frozen=True)
class LayoutKey:
    """A layout that can be the key of a cache."""

    layout: Layout

    def __hash__(self) -> int:
        return hash(tuple(self.layout.sizes.items()))


def bucket(length: int) -> int:
    """Return the smallest power of two that holds `length`."""
    return max(MIN_BUCKET, 1 << (length - 1).bit_length())


def ends_of(eos_id: int | Sequence[int] | None) -> list[int]:
    """Return the tokens that end a text: none, one or several."""
    if eos_id is None:
        return []
    return [eos_id] if isinstance(eos_id, int) else list(eos_id)


def pad_left(prompts: Sequence[Sequence[int]], layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return prompts `(B, S)`, where each starts `(B,)`, and which rows only fill up a batch that the mesh divides."""
    ways = prod(layout.sizes.get(axis, 1) for axis in BATCH_AXES)
    rows = -(-len(prompts) // ways) * ways
    length = bucket(max(map(len, prompts)))
    tokens_BS = np.zeros((rows, length), np.int32)
    starts_B = np.full(rows, length - 1, np.int32)
    for row, prompt in enumerate(prompts):
        starts_B[row] = length - len(prompt)
        tokens_BS[row, starts_B[row] :] = prompt
    return tokens_BS, starts_B, np.arange(rows) >= len(prompts)


def one_by_one(layout: Layout) -> Layout:
    """Return the layout of single tokens, which cannot be split along the sequence."""
    whole = layout.whole_rows()
    return replace(whole, activations={**whole.activations, "residual_seq": ()}) if layout.sizes else layout


def begin(model: Model, params: Any, tokens_BS, starts_B, room: int, start_id: Any, layout: Layout):
    """Read the prompts; return the hidden states `(B, 1, D)` of the token before the first new one, and the cache.

    The cache has room for `room` new tokens. `start_id` is what an encoder-decoder writes after.
    """
    tokens_BS, starts_B = layout.place(tokens_BS, "batch", "seq"), layout.place(starts_B, "batch")
    if model.cfg.kind == "encdec":
        return model.family.prefill(params, tokens_BS, starts_B, room, model.cfg, layout, start_id=start_id)
    x_BSD, cache = model.family.prefill(params, tokens_BS, starts_B, tokens_BS.shape[1] + room, model.cfg, layout)
    return x_BSD[:, -1:], cache


def prepare(model: Model, layout: Layout, params: Any, gather: bool) -> tuple[Any, list[jax.Array]]:
    """Return the parameters as a loop reads them (compute dtype, one tree a layer) and the output matrix."""
    if gather:
        params = layout.gather(params, model.specs, model.cfg.dtype)
    else:
        params = param_tree.cast(model.specs, params, model.cfg.dtype)
        if layout.stages > 1:  # layers are taken one by one, each by all devices
            params = jax.tree.map(_of_all_stages, model.specs, params)
    head = model.family.head_pieces(params, model.cfg, layout)
    return param_tree.map_blocks(param_tree.unstack, params), head


def _of_all_stages(spec: param_tree.ParamSpec, w: jax.Array) -> jax.Array:
    """Return a parameter whose layers are not split over stages."""
    return jax.reshard(w, jax.P(None, *jax.typeof(w).sharding.spec[1:])) if spec.stacked else w


def fits(model: Model, layout: Layout) -> bool:
    """Whether half of a device's free memory holds the gathered parameters; devices that do not say count as large."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return True
    itemsize = jnp.dtype(model.cfg.dtype).itemsize
    needed = sum(
        itemsize * spec.size // prod(layout.sizes[axis] for axis in layout.over(*spec.axes))
        for spec in jax.tree.leaves(model.specs)
    )
    return needed < (stats["bytes_limit"] - stats["bytes_in_use"]) / 2
