"""Exact causal attention in blocks of queries with a gradient of its own, for backends without a fused kernel.

A block of queries never meets the keys after its end or, with a window, those before its reach: with 4 blocks that
leaves 5/8 of the scores. Unnormalised probabilities are kept for the backward pass and the small output is divided by
their sum instead. Two-stage sums, leaving out the maximum and additive masks were tried on a CPU and changed nothing.

Legend: B batch, S queries of a block, T keys it meets, G kv heads, Q heads per kv head, K head dim.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.models.attention.masks import Mask, ProbsDropout
from bigjax.sharding import UNSHARDED, Layout

MIN_BLOCK = 64
MAX_BLOCKS = 4


def blocked(
    q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, softcap=None, dropout: ProbsDropout | None = None, layout: Layout = UNSHARDED
):
    """Attend as `reference` does; no dropout."""
    assert dropout is None
    B, S, H, K = q_BSHK.shape
    G = k_BTGK.shape[2]
    grouped = layout.act("batch", "seq", "heads", "seq", "head_dim")
    q_BSGQK = jax.lax.reshape(q_BSHK, (B, S, G, H // G, K), out_sharding=grouped)
    q, k, v = q_BSGQK.transpose(0, 2, 3, 1, 4), k_BTGK.transpose(0, 2, 1, 3), v_BTGK.transpose(0, 2, 1, 3)
    out_BGQSK = _attend(q, k, v, mask.segments_BS, _Options(mask.window, softcap))
    out_BSGQK = out_BGQSK.transpose(0, 3, 1, 2, 4)
    return jax.lax.reshape(out_BSGQK, (B, S, H, K), out_sharding=layout.act("batch", "seq", "heads", "head_dim"))


@dataclass(frozen=True)
class _Options:
    window: int | None
    softcap: float | None

    def blocks(self, seq_len: int) -> list[tuple[int, int, int]]:
        """Return the blocks of `query_blocks`."""
        return query_blocks(seq_len, block_count(seq_len), self.window)


def block_count(seq_len: int) -> int:
    """Return how many blocks of queries a row has: at most `MAX_BLOCKS` of at least `MIN_BLOCK`."""
    return max(1, min(MAX_BLOCKS, seq_len // MIN_BLOCK))


@cache
def query_blocks(seq_len: int, count: int, window: int | None) -> list[tuple[int, int, int]]:
    """Return (first key, first query, end) of each of `count` blocks of queries; the first key starts a block too."""
    bounds = [seq_len * i // count for i in range(count + 1)]
    reach = seq_len if window is None else window - 1
    first = [max(bound for bound in bounds if bound <= max(0, start - reach)) for start in bounds]
    return list(zip(first, bounds[:-1], bounds[1:], strict=False))


def _primal(q, k, v, segments_BS, options: _Options) -> jax.Array:
    return _forward(q, k, v, segments_BS, options)[0]


def _forward(q, k, v, segments_BS, options: _Options):
    mask, saved, outputs = Mask(segments_BS, options.window), [], []
    scaled = q * q.shape[-1] ** -0.5
    for first, start, end in options.blocks(q.shape[3]):
        allowed = mask.dense(end - start, start, end)[:, :, None, :, first:]
        scores = jnp.einsum(
            "BGQSK,BGTK->BGQST",
            scaled[:, :, :, start:end],
            k[:, :, first:end],
            preferred_element_type=jnp.float32,
        )
        slope = None
        if options.softcap is not None:
            squashed = jnp.tanh(scores / options.softcap)
            scores, slope = options.softcap * squashed, 1 - jnp.square(squashed)
        scores = jnp.where(allowed, scores, -1e30)
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        inverse = 1 / jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "BGQST,BGTK->BGQSK", weights.astype(v.dtype), v[:, :, first:end], preferred_element_type=jnp.float32
        )
        outputs.append((mixed * inverse).astype(v.dtype))
        saved.append((weights.astype(v.dtype), inverse, slope))
    out = jnp.concatenate(outputs, axis=3)
    return out, (scaled, k, v, out, saved)


def _backward(options: _Options, residuals, dout):
    scaled, k, v, out, saved = residuals
    through = jnp.sum(dout.astype(jnp.float32) * out, axis=-1, keepdims=True)
    blocks = options.blocks(scaled.shape[3])
    dq: list[jax.Array] = []
    dk: list[Any] = [0.0] * len(blocks)
    dv: list[Any] = [0.0] * len(blocks)
    for (first, start, end), (weights, inverse, slope) in zip(blocks, saved, strict=True):
        here, there = slice(start, end), slice(first, end)
        weighted = (dout[:, :, :, here] * inverse).astype(v.dtype)
        dprobs = jnp.einsum("BGQSK,BGTK->BGQST", weighted, v[:, :, there], preferred_element_type=jnp.float32)
        dscores = weights * (dprobs - through[:, :, :, here] * inverse)
        dscores = (dscores if slope is None else dscores * slope).astype(v.dtype)
        dq.append(jnp.einsum("BGQST,BGTK->BGQSK", dscores, k[:, :, there]))
        dkeys = jnp.einsum("BGQST,BGQSK->BGTK", dscores, scaled[:, :, :, here])
        dvalues = jnp.einsum("BGQST,BGQSK->BGTK", weights, weighted)
        # Added block by block: adding into a slice of the whole would be a scatter.
        for i, (_, low, high) in enumerate(blocks):
            if first <= low < end:
                dk[i] += dkeys[:, :, low - first : high - first]
                dv[i] += dvalues[:, :, low - first : high - first]
    return jnp.concatenate(dq, axis=3) * scaled.shape[-1] ** -0.5, *(jnp.concatenate(d, axis=2) for d in (dk, dv)), None


_attend: Any = jax.custom_vjp(_primal, nondiff_argnums=(4,))
_attend.defvjp(_forward, _backward)
