"""Attention back ends by name, each declaring what it supports.

Legend: B batch, S query positions, T key positions, H heads, G kv heads, K head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm, prod
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.config.model import is_on
from bigjax.models.attention import kernels
from bigjax.models.attention.blocked import blocked
from bigjax.models.attention.masks import AttentionError, Mask, ProbsDropout
from bigjax.models.parts.layers import keep_mask, soft_cap
from bigjax.sharding import UNSHARDED, Layout


def reference(
    q_BSHK,
    k_BTGK,
    v_BTGK,
    mask: Mask,
    *,
    softcap=None,
    dropout: ProbsDropout | None = None,
    bias_HST: jax.Array | None = None,
    layout: Layout = UNSHARDED,
):
    """Materialise the scores; softmax in float32. Every other back end is tested against this one."""
    scores = _scores(q_BSHK, k_BTGK, softcap, layout)
    if bias_HST is not None:
        H, S, T = bias_HST.shape
        grouped = layout.act("heads", "seq", "seq", "seq")
        scores += jax.lax.reshape(bias_HST, (k_BTGK.shape[2], H // k_BTGK.shape[2], S, T), out_sharding=grouped)
    allowed = mask.dense(q_BSHK.shape[1], num_keys=k_BTGK.shape[1])[:, :, None]
    return _combine(scores, allowed, v_BTGK, q_BSHK, dropout, layout)


def _grouped(q_BSHK: jax.Array, num_kv_heads: int, layout: Layout) -> jax.Array:
    """Reshape queries to `(B, S, G, H/G, K)`: consecutive heads share a kv head (Ainslie et al. 2023)."""
    B, S, H, K = q_BSHK.shape
    shape = (B, S, num_kv_heads, H // num_kv_heads, K)
    return jax.lax.reshape(q_BSHK, shape, out_sharding=layout.act("batch", "seq", "heads", "seq", "head_dim"))


def _scores(q_BSHK, k_BTGK, softcap, layout: Layout) -> jax.Array:
    """Return scaled scores `(B, G, H/G, S, T)` in float32."""
    q = _grouped(q_BSHK * q_BSHK.shape[-1] ** -0.5, k_BTGK.shape[2], layout)
    scores = jnp.einsum("BSGQK,BTGK->BGQST", q, k_BTGK, preferred_element_type=jnp.float32)
    return soft_cap(scores, softcap)


def _combine(scores, allowed, v_BTGK, q_BSHK, dropout: ProbsDropout | None, layout: Layout) -> jax.Array:
    """Return the probability-weighted sum of values, `(B, S, H, K)`."""
    B, S, H, K = q_BSHK.shape
    probs = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    if dropout is not None:
        keep = keep_mask(dropout.rate, dropout.key, dropout.rows_B, probs.shape[1:])
        keep = layout.place(keep, "batch", "heads", "seq", "seq", "seq")
        probs = jnp.where(keep, probs / (1 - dropout.rate), 0)
    out = jnp.einsum("BGQST,BTGK->BSGQK", probs.astype(v_BTGK.dtype), v_BTGK)
    sharding = layout.act("batch", "seq", "heads", "head_dim")
    return jax.lax.reshape(out, (B, S, H, K), out_sharding=sharding)


def cached(
    q_B1HK,
    k_B1GK,
    v_B1GK,
    k_BGKT,
    v_BGTK,
    index,
    allowed_BT,
    *,
    softcap=None,
    bias_HT: jax.Array | None = None,
    layout: Layout = UNSHARDED,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attend with one query a row to itself and to `allowed_BT` of what is cached; then cache it at `index`.

    Returns the mixed values and the caches with the new key and value. The mesh splits G like H. `bias_HT` is added to
    the scores, that of position `index` to the query's own.
    """
    B, _, H, K = q_B1HK.shape
    G = k_BGKT.shape[1]
    grouped = layout.act("batch", "heads", "seq", "head_dim")
    q_BGQK = jax.lax.reshape(q_B1HK * K**-0.5, (B, G, H // G, K), out_sharding=grouped)
    k_BGK1, v_BG1K = jnp.transpose(k_B1GK, (0, 2, 3, 1)), jnp.transpose(v_B1GK, (0, 2, 1, 3))

    def scores(keys):
        out = jnp.einsum("BGQK,BGKT->BGQT", q_BGQK, keys, preferred_element_type=jnp.float32)
        return soft_cap(out, softcap)

    own, past = scores(k_BGK1), scores(k_BGKT)
    if bias_HT is not None:
        split = layout.act("heads", "seq", "seq")
        bias_GQT = jax.lax.reshape(bias_HT, (G, H // G, bias_HT.shape[1]), out_sharding=split)
        past += bias_GQT
        own += jax.lax.dynamic_slice_in_dim(bias_GQT, index, 1, axis=2)
    past = jnp.where(allowed_BT[:, None, None], past, -1e30)
    highest = jnp.maximum(own, past.max(axis=-1, keepdims=True))
    own, past = jnp.exp(own - highest), jnp.exp(past - highest)
    total = own + past.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("BGQT,BGTK->BGQK", past.astype(v_BGTK.dtype), v_BGTK, preferred_element_type=jnp.float32)
    out_BGQK = ((mixed + own * v_BG1K) / total).astype(q_B1HK.dtype)
    # What is written depends on what was read (a NaN goes on into the cache), so XLA on CPU must read first and can
    # then write in place; else it copies the whole cache for every token.
    broken_BGK = jnp.isnan(out_BGQK).any(axis=2)
    k_BGK1 = jnp.where(broken_BGK[..., None], jnp.nan, k_BGK1)
    v_BG1K = jnp.where(broken_BGK[:, :, None], jnp.nan, v_BG1K)
    caches = (
        jax.lax.dynamic_update_slice_in_dim(k_BGKT, k_BGK1, index, axis=3),
        jax.lax.dynamic_update_slice_in_dim(v_BGTK, v_BG1K, index, axis=2),
    )
    out = jax.lax.reshape(out_BGQK, q_B1HK.shape, out_sharding=layout.act("batch", "seq", "heads", "head_dim"))
    return out, caches


def match_kv_heads(k_BTGK: jax.Array, v_BTGK: jax.Array, num_heads: int, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """Repeat kv heads that the mesh leaves whole until it can split them like the heads.

    With 8 heads on 4 devices and 2 kv heads, each kv head is used twice: `(B, T, 4, K)`, one a device.
    """
    if layout.over("heads") == layout.over("kv_heads"):
        return k_BTGK, v_BTGK
    B, T, G, K = k_BTGK.shape
    repeated = lcm(G, prod(layout.sizes[axis] for axis in layout.over("heads")))
    assert num_heads % repeated == 0, "both factors divide the heads"
    whole = layout.act("batch", "seq", "kv_heads", "head_dim")

    def repeat(x_BTGK):
        spread = jnp.broadcast_to(x_BTGK[:, :, :, None], (B, T, G, repeated // G, K))
        flat = jax.lax.reshape(spread, (B, T, repeated, K), out_sharding=whole)
        return layout.place(flat, "batch", "seq", "heads", "head_dim")

    return repeat(k_BTGK), repeat(v_BTGK)


@dataclass(frozen=True)
class Backend:
    """An attention function and what it honours; asking for more is an error, never ignored.

    `attend(q_BSHK, k_BTGK, v_BTGK, mask, *, softcap, dropout, layout)` returns `(B, S, H, K)`; the mesh splits its
    kv heads like its heads. `cross`: the keys may be of another sequence; `bias`: it adds `bias_HST` to the scores.
    """

    attend: Callable[..., jax.Array]
    segments: bool = True
    window: bool = True
    softcap: bool = True
    dropout: bool = True
    bidirectional: bool = True
    cross: bool = False
    bias: bool = False
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    dtypes: tuple[str, ...] = ("float32", "bfloat16")


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference, cross=True, bias=True),
    "blocked": Backend(blocked, dropout=False, bidirectional=False),
    "xla": Backend(kernels.xla, softcap=False, dropout=False, cross=True),
    "cudnn": Backend(kernels.cudnn, softcap=False, dropout=False, platforms=("gpu",), dtypes=("bfloat16",)),
    "splash": Backend(kernels.splash, dropout=False, platforms=("cpu", "tpu")),
}

ATTENTION_ORDER = {
    "cpu": ("reference",),
    "gpu": ("cudnn", "blocked", "xla", "reference"),
    "tpu": ("splash", "blocked", "xla", "reference"),
}
"""What `auto` tries, by platform: kernels, then those that do not store all scores."""


def lacking(
    name: str,
    *,
    segments: bool,
    window: int | None,
    softcap: float | None,
    dropout: float,
    dtype: str,
    causal: bool = True,
    cross: bool = False,
    bias: bool = False,
    platform: str | None = None,
) -> str:
    """Return the first field that the back end `name` does not support, and those that do; empty if it honours all."""
    backend = BACKENDS[name]
    asked: list[tuple[bool, str, Callable[[Backend], bool]]] = [
        (segments, "data.document_mask=True", lambda b: b.segments),
        (window is not None, f"a sliding window of {window} tokens", lambda b: b.window),
        (softcap is not None, f"model.attn_softcap={softcap}", lambda b: b.softcap),
        (is_on(dropout), f"model.dropout={dropout}", lambda b: b.dropout),
        (not causal, "attention in both directions", lambda b: b.bidirectional),
        (cross, "attention to another sequence", lambda b: b.cross),
        (bias, "model.positions='relative'", lambda b: b.bias),
        (True, f"model.dtype='{dtype}'", lambda b: dtype in b.dtypes),
        (platform is not None, f"the platform '{platform}'", lambda b: platform in b.platforms),
    ]
    for wanted, field, supports in asked:
        if wanted and not supports(backend):
            able = ", ".join(other for other, b in BACKENDS.items() if supports(b))
            return f"{field}; these do: {able}"
    return ""


def first_able(platform: str | None, seq_len: int, head_dim: int, **asked: Any) -> str:
    """Return the first of `ATTENTION_ORDER` that suits the shapes and honours all that is asked, as `lacking` takes it.

    On platforms that are not listed, and where none is known, it is `reference`.
    """
    for name in ATTENTION_ORDER.get(platform or "", ()):
        suits = not kernels.unmet(name, seq_len, head_dim, asked["segments"])
        if suits and not lacking(name, platform=platform, **asked):
            return name
    return "reference"


def select(name: str, **asked: Any) -> Callable[..., jax.Array]:
    """Return the attention function `name` after checking that it honours all that is asked, as `lacking` takes it.

    `auto` is the first of `ATTENTION_ORDER` that honours it, and suits the shapes.

    Raises:
      AttentionError: naming the field that the back end does not support and those that do.
    """
    platform = kernels.target_platform()
    if name != "auto" and (missing := lacking(name, platform=platform, **asked)):
        raise AttentionError(f"model.attention='{name}' does not support {missing}")

    def attend(q_BSHK, k_BTGK, v_BTGK, mask: Mask, *, softcap=None, dropout=None, bias_HST=None, layout=UNSHARDED):
        _, seq_len, _, head_dim = q_BSHK.shape
        chosen = first_able(platform, seq_len, head_dim, **asked) if name == "auto" else name
        backend = BACKENDS[chosen]
        k_BTGK, v_BTGK = match_kv_heads(k_BTGK, v_BTGK, q_BSHK.shape[2], layout)
        added = {} if bias_HST is None else {"bias_HST": bias_HST}
        return backend.attend(q_BSHK, k_BTGK, v_BTGK, mask, softcap=softcap, dropout=dropout, layout=layout, **added)

    return attend
