"""Self-attention back ends by name, each declaring what it supports.

Legend: B batch, S query positions, T key positions, H heads, G kv heads, K head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.models.layers import keep_mask
from bigjax.sharding import UNSHARDED, Layout


class AttentionError(UserError):
    """The named attention back end cannot do what the model asks for."""


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see: those at or before it, in its document, and not `window` or more back.

    Attributes:
      segments_BS: document number of each position, 0 for padding; None means one document a row.
      window: number of most recent positions a query sees, itself included; None means all.
    """

    segments_BS: jax.Array | None = None
    window: int | None = None

    def dense(self, num_queries: int, first_query: int = 0, num_keys: int | None = None) -> jax.Array:
        """Return the mask as bools, `(1 or B, 1, S, T)`, for a block of queries."""
        query_S1 = first_query + jnp.arange(num_queries)[:, None]
        key_T = jnp.arange(num_keys or num_queries)
        allowed = key_T <= query_S1
        if self.window is not None:
            allowed &= key_T > query_S1 - self.window
        if self.segments_BS is None:
            return allowed[None, None]
        queries = self.segments_BS[:, first_query : first_query + num_queries, None]
        keys = self.segments_BS[:, None, : key_T.size]
        return (allowed & (queries == keys))[:, None]


@dataclass(frozen=True)
class ProbsDropout:
    """Dropout of the attention probabilities: rate, key, and the global row of each example."""

    rate: float
    key: jax.Array
    rows_B: jax.Array


def reference(q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, softcap=None, dropout: ProbsDropout | None = None, layout=UNSHARDED):
    """Materialise the scores; softmax in float32. Every other back end is tested against this one."""
    scores = _scores(q_BSHK, k_BTGK, softcap, layout)
    allowed = mask.dense(q_BSHK.shape[1])[:, :, None]
    return _combine(scores, allowed, v_BTGK, q_BSHK, dropout, layout)


def blocked(q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, softcap=None, dropout: ProbsDropout | None = None, layout=UNSHARDED):
    """Like `reference`, one block of queries at a time, never computing keys after the block's end."""
    del dropout
    num_blocks = _num_blocks(q_BSHK.shape[1])
    size = q_BSHK.shape[1] // num_blocks
    out = []
    for start in range(0, q_BSHK.shape[1], size):
        end = start + size
        q, k, v = q_BSHK[:, start:end], k_BTGK[:, :end], v_BTGK[:, :end]
        allowed = mask.dense(size, start, end)[:, :, None]
        out.append(_combine(_scores(q, k, softcap, layout), allowed, v, q, None, layout))
    return jnp.concatenate(out, axis=1)


def _num_blocks(seq_len: int) -> int:
    """Return the number of query blocks: the largest power of two up to 8 that leaves blocks of 64 or more."""
    return max(n for n in (1, 2, 4, 8) if seq_len % n == 0 and (n == 1 or seq_len // n >= 64))


def _grouped(q_BSHK: jax.Array, num_kv_heads: int, layout: Layout) -> jax.Array:
    """Reshape queries to `(B, S, G, H/G, K)`: consecutive heads share a kv head (Ainslie et al. 2023)."""
    B, S, H, K = q_BSHK.shape
    shape = (B, S, num_kv_heads, H // num_kv_heads, K)
    sharding = layout.act("batch", "seq", "kv_heads", "seq", "head_dim") if layout.sizes else None
    return jax.lax.reshape(q_BSHK, shape, out_sharding=sharding)


def _scores(q_BSHK, k_BTGK, softcap, layout: Layout) -> jax.Array:
    """Return scaled scores `(B, G, H/G, S, T)` in float32."""
    q = _grouped(q_BSHK * q_BSHK.shape[-1] ** -0.5, k_BTGK.shape[2], layout)
    scores = jnp.einsum("BSGQK,BTGK->BGQST", q, k_BTGK, preferred_element_type=jnp.float32)
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _combine(scores, allowed, v_BTGK, q_BSHK, dropout: ProbsDropout | None, layout: Layout) -> jax.Array:
    """Return the probability-weighted sum of values, `(B, S, H, K)`."""
    B, S, H, K = q_BSHK.shape
    probs = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    if dropout is not None:
        keep = keep_mask(dropout.rate, dropout.key, dropout.rows_B, probs.shape[1:])
        keep = layout.place(keep, "batch", "kv_heads", "seq", "seq", "seq")
        probs = jnp.where(keep, probs / (1 - dropout.rate), 0)
    out = jnp.einsum("BGQST,BTGK->BSGQK", probs.astype(v_BTGK.dtype), v_BTGK)
    sharding = layout.act("batch", "seq", "heads", "head_dim")
    return jax.lax.reshape(out, (B, S, H, K), out_sharding=sharding)


@dataclass(frozen=True)
class Backend:
    """An attention function and what it honours; asking for more is an error, never ignored."""

    attend: Callable[..., jax.Array]
    segments: bool = True
    window: bool = True
    softcap: bool = True
    dropout: bool = True
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    dtypes: tuple[str, ...] = ("float32", "bfloat16")


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference),
    "blocked": Backend(blocked, dropout=False),
}


def select(
    name: str, *, segments: bool, window: int | None, softcap: float | None, dropout: float, dtype: str
) -> Callable[..., jax.Array]:
    """Return the attention function `name` after checking that it honours all that is asked.

    Raises:
      AttentionError: naming the field that the back end does not support and those that do.
    """
    backend = BACKENDS[name]
    asked = {
        "segments": (segments, "data.document_mask=True"),
        "window": (window is not None, f"model.sliding_window={window}"),
        "softcap": (softcap is not None, f"model.attn_softcap={softcap}"),
        "dropout": (dropout > 0, f"model.dropout={dropout}"),
    }
    for feature, (wanted, field) in asked.items():
        if wanted and not getattr(backend, feature):
            able = ", ".join(other for other, b in BACKENDS.items() if getattr(b, feature))
            raise AttentionError(f"model.attention='{name}' does not support {field}; these do: {able}")
    if dtype not in backend.dtypes:
        raise AttentionError(f"model.attention='{name}' does not support model.dtype='{dtype}', only {backend.dtypes}")
    return backend.attend
