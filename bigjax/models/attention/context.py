"""Attention over rows that the mesh axis `context` splits: documents, windows, soft caps, fewer kv heads than heads.

`config.exchange` says which ways there are. What a back end computes, it computes here on what one device holds.

Legend: B batch, S query positions, T key positions, H heads, G kv heads, K head dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.config import ModelConfig, exchange
from bigjax.models.attention import kernels, order
from bigjax.models.attention.backends import BACKENDS, match_kv_heads
from bigjax.models.attention.masks import AttentionError, Mask
from bigjax.models.attention.ring import Options, ring, visible
from bigjax.sharding import Layout

AXIS = "context"
"""The mesh axis that splits rows."""


def resolved(cfg: ModelConfig, layout: Layout, seq_len: int) -> str:
    """Return how rows are attended to on a mesh, one of those that `mesh.context_exchange` names; empty if whole."""
    if AXIS not in layout.over("seq"):
        return ""
    return exchange.choose(cfg, layout.exchange, seq_len, layout.sizes[AXIS], layout.ways("heads"))


def arranged(batch: Mapping[str, jax.Array], cfg: ModelConfig, layout: Layout) -> tuple[dict[str, jax.Array], bool]:
    """Return a batch of whole rows `(B, S)` with its rows split over `context`, and whether they are in balance.

    All arrays of a row go the same way: targets, that were shifted on the whole row, weights, documents and positions,
    which count from 0 along the row where the batch has none.
    """
    ways, balanced = layout.sizes[AXIS], resolved(cfg, layout, batch["tokens"].shape[1]) != "all_to_all"
    rows = {name: layout.place(x, "batch") for name, x in batch.items() if x.ndim == 2}
    if "positions" not in rows:
        B, S = rows["tokens"].shape
        rows["positions"] = layout.place(jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S)), "batch")
    moved = {name: order.balance(x, ways) if balanced else x for name, x in rows.items()}
    return {**batch, **{name: layout.place(x, "batch", "seq") for name, x in moved.items()}}, balanced


def attend(
    q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, cfg: ModelConfig, layout: Layout, balanced: bool, softcap=None, dropout=None
) -> jax.Array:
    """Attend within rows that are split over `context`, in balance or in their own order: `(B, S, H, K)`.

    Raises:
      AttentionError: the heads, the row or the back end do not suit how the parts are to attend to each other.
    """
    assert mask.causal
    if dropout is not None:
        raise AttentionError("model.dropout of attention is drawn for whole rows: set it to 0, or mesh.context=1")
    ways, seq_len = layout.sizes[AXIS], q_BSHK.shape[1]
    how = resolved(cfg, layout, seq_len)
    backend = "reference" if cfg.attention == "auto" else cfg.attention  # where no devices have resolved it
    part = _Part(backend, ways, seq_len, balanced, mask.window, softcap)
    if how == "all_to_all" and balanced:
        raise AttentionError("mesh.context_exchange='all_to_all' attends to rows in their own order")
    if how == "all_to_all" and q_BSHK.shape[2] // layout.ways("heads") % ways:
        raise AttentionError(f"mesh.context_exchange='all_to_all' needs heads that mesh.context={ways} divides")
    k_BTGK, v_BTGK = match_kv_heads(k_BTGK, v_BTGK, q_BSHK.shape[2], layout)
    heads, rows = layout.act("batch", "seq", "heads", "head_dim"), layout.act("batch", "seq")
    arrays: list[Any] = [q_BSHK, k_BTGK, v_BTGK]
    specs: list[Any] = [heads] * 3
    if mask.segments_BS is not None:
        arrays.append(layout.place(mask.segments_BS, "batch", "seq"))
        specs.append(rows)
    compute = {"all_to_all": _all_to_all, "gather": _gather, "ring": _ring}[how]
    if how == "gather" and cfg.attention == "splash":
        heads_here = q_BSHK.shape[2] // layout.ways("heads")
        kernel = kernels.splash_kernel(seq_len, heads_here, mask, softcap, order.places(seq_len, ways, balanced))
        where = jax.sharding.NamedSharding(jax.sharding.get_abstract_mesh(), jax.P(None, AXIS))
        of_kernel = kernel.manual_sharding_spec(where)
        arrays, specs = [jax.tree.map(jax.reshard, kernel, of_kernel), *arrays], [of_kernel, *specs]
        compute = _gather_for_kernel
    # Kernels do not say over which mesh axes their results vary, so that check is off.
    mapped = jax.shard_map(partial(compute, part), in_specs=tuple(specs), out_specs=heads, check_vma=False)
    return mapped(*arrays)


@dataclass(frozen=True)
class _Part:
    """What a device knows of the rows whose part it has."""

    backend: str
    ways: int
    seq_len: int
    balanced: bool
    window: int | None
    softcap: float | None


@dataclass(frozen=True)
class _Rectangle(Mask):
    """The mask of some queries of a row and all its keys, `(B or 1, S, T)`, worked out before."""

    allowed_BST: Any = None

    def dense(self, num_queries: int, first_query: int = 0, num_keys: int | None = None) -> jax.Array:
        del num_queries, first_query, num_keys
        return self.allowed_BST[:, None]


def _all_to_all(part: _Part, q_BSHK, k_BTGK, v_BTGK, segments_BS=None) -> jax.Array:
    """Bring the whole row of a share of the heads to each device, attend there, and bring the results back."""
    repeats = lcm(k_BTGK.shape[2], part.ways) // k_BTGK.shape[2]
    spread = partial(jax.lax.all_to_all, axis_name=AXIS, split_axis=2, concat_axis=1, tiled=True)
    k, v = (spread(jnp.repeat(x, repeats, axis=2) if repeats > 1 else x) for x in (k_BTGK, v_BTGK))
    mask = Mask(_gathered(segments_BS), part.window)
    mixed = BACKENDS[part.backend].attend(spread(q_BSHK), k, v, mask, softcap=part.softcap)
    return jax.lax.all_to_all(mixed, AXIS, split_axis=1, concat_axis=2, tiled=True)


def _gathered(x_BS: jax.Array | None) -> Any:
    return None if x_BS is None else jax.lax.all_gather(x_BS, AXIS, axis=1, tiled=True)


def _gather(part: _Part, q_BSHK, k_BTGK, v_BTGK, segments_BS=None) -> jax.Array:
    """Gather keys, values and documents of the whole row, and attend to them from the device's own queries."""
    k, v, key_segments = (_gathered(x) for x in (k_BTGK, v_BTGK, segments_BS))
    places = order.places(part.seq_len, part.ways, part.balanced)
    query_S, key_T = jnp.asarray(places)[jax.lax.axis_index(AXIS)], places.reshape(-1)
    allowed = visible(query_S, key_T, segments_BS, key_segments, part.window)
    if part.backend == "reference":
        return BACKENDS["reference"].attend(q_BSHK, k, v, _Rectangle(allowed_BST=allowed), softcap=part.softcap)
    implementation: Any = part.backend
    return jax.nn.dot_product_attention(q_BSHK, k, v, mask=allowed[:, None], implementation=implementation)


def _gather_for_kernel(part: _Part, kernel: Any, q_BSHK, k_BTGK, v_BTGK, segments_BS=None) -> jax.Array:
    """Gather as `_gather` does, and put the keys in the order of the row, which the kernel counts them by."""
    whole = [_gathered(x) for x in (k_BTGK, v_BTGK, segments_BS)]
    if part.balanced:
        whole = [None if x is None else order.unbalance(x, part.ways) for x in whole]
    k, v, key_segments = whole
    return kernels.run_splash(kernel, q_BSHK, k, v, segments_BS, key_segments)


def _ring(part: _Part, q_BSHK, k_BTGK, v_BTGK, segments_BS=None) -> jax.Array:
    """Send the keys and values round, and attend to those that are here."""
    options = Options(AXIS, part.ways, part.seq_len, part.balanced, part.window, part.softcap)
    return ring(q_BSHK, k_BTGK, v_BTGK, segments_BS, options)
