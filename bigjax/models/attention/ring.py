"""Ring attention: keys and values go round the devices that share a row, and scores exist a block at a time.

Each device keeps its queries. At every step it attends to the keys and values that are with it, while they travel on to
the next device (Liu et al. 2023, section 3); the softmax of what was seen so far is carried along (Milakov & Gimelshein
2018, algorithm 3). The backward pass goes round again: a block of probabilities is formed anew from the logarithm of
its sum, and the gradients of keys and values, in float32, travel with them until they are back (Dao 2023, algorithm 2).
Blocks that no query sees, as they come later, or before the window, cost nothing.

Legend: B batch, S queries of a device, N blocks of a device, L tokens of a block, G kv heads, Q heads per kv head,
K head dim.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.models.attention import order

MAX_BLOCK = 512
"""Tokens of the longest block: with 32 heads its scores take 32 MiB."""

HIDDEN = -1e30
"""The score of a key that a query does not see."""


@dataclass(frozen=True)
class Options:
    """What every device knows: the mesh axis, its size, the length of a row, how it lies there, and who sees what."""

    axis: str
    ways: int
    seq_len: int
    balanced: bool
    window: int | None
    softcap: float | None

    @property
    def block(self) -> int:
        """Tokens of a block: the largest part of a piece of a row that is no longer than `MAX_BLOCK`."""
        piece = self.seq_len // (2 * self.ways if self.balanced else self.ways)
        return next(size for size in range(min(piece, MAX_BLOCK), 0, -1) if piece % size == 0)

    def starts(self) -> jax.Array:
        """Return where in its row each block of each device starts, `(devices, N)`."""
        return jnp.asarray(order.places(self.seq_len, self.ways, self.balanced)[:, :: self.block])


class Travelling(NamedTuple):
    """What goes round: keys and values `(N, B, L, G, K)`, documents `(N, B, L)` or None, and where blocks start."""

    k: jax.Array
    v: jax.Array
    segments: Any
    starts_N: jax.Array


def ring(q_BSHK, k_BSGK, v_BSGK, segments_BS, options: Options) -> jax.Array:
    """Return what one device's queries make of the keys and values of all, `(B, S, H, K)`, inside a `shard_map`."""
    return _ring(q_BSHK, k_BSGK, v_BSGK, segments_BS, options)


def _primal(q, k, v, segments, options: Options) -> jax.Array:
    return _forward(q, k, v, segments, options)[0]


def _forward(q_BSHK, k_BSGK, v_BSGK, segments_BS, options: Options):
    held = _held(k_BSGK, v_BSGK, segments_BS, options)
    q_NBLGQK = _queries(q_BSHK, k_BSGK.shape[2], options)
    N, B, L, G, Q, K = q_NBLGQK.shape
    shape = (N, B, G, Q, L)
    nothing = jnp.zeros((*shape, K), jnp.float32), jnp.full(shape, HIDDEN, jnp.float32), jnp.zeros(shape, jnp.float32)
    own = (q_NBLGQK, held.segments, held.starts_N)

    def visit(state, there: Travelling):
        def of_queries(_, mine_and_state):
            (q, segments, start), so_far = mine_and_state

            def of_keys(so_far, block):
                merge = partial(_merge, q, segments, start, block, options)
                return jax.lax.cond(_meets(start, block.starts_N, options), merge, lambda s: s, so_far), None

            return None, jax.lax.scan(of_keys, so_far, there)[0]

        return jax.lax.scan(of_queries, None, (own, state))[1]

    def step(carry, _):
        state, there = carry
        coming = _onward(there, options)
        return (visit(state, there), coming), None

    (state, last), _ = jax.lax.scan(step, (nothing, held), None, length=options.ways - 1)
    mixed, peak, total = visit(state, last)
    out = (mixed / total[..., None]).astype(v_BSGK.dtype)
    out_BSHK = out.transpose(1, 0, 4, 2, 3, 5).reshape(q_BSHK.shape)
    return out_BSHK, (q_BSHK, k_BSGK, v_BSGK, segments_BS, out_BSHK, peak + jnp.log(total))


def _merge(q_BLGQK, segments_BL, start, block: Travelling, options: Options, so_far):
    """Add what a block of queries makes of a block of keys to what it made of others."""
    mixed, peak, total = so_far
    scores, allowed, _ = _scores(q_BLGQK, segments_BL, start, block, options)
    highest = jnp.maximum(peak, jnp.max(scores, axis=-1))
    weights = jnp.where(allowed, jnp.exp(scores - highest[..., None]), 0)
    shrink = jnp.exp(peak - highest)
    added = jnp.einsum("BGQLM,BMGK->BGQLK", weights.astype(block.v.dtype), block.v, preferred_element_type=jnp.float32)
    return mixed * shrink[..., None] + added, highest, total * shrink + jnp.sum(weights, axis=-1)


def _scores(q_BLGQK, segments_BL, start, block: Travelling, options: Options):
    """Return scaled scores `(B, G, Q, L, M)`, which of them count, and their slope by the scores before the cap."""
    scores = jnp.einsum("BLGQK,BMGK->BGQLM", q_BLGQK, block.k, preferred_element_type=jnp.float32)
    slope = None
    if options.softcap is not None:
        squashed = jnp.tanh(scores / options.softcap)
        scores, slope = options.softcap * squashed, 1 - jnp.square(squashed)
    place = jnp.arange(options.block)
    allowed = visible(start + place, block.starts_N + place, segments_BL, block.segments, options.window)
    allowed = allowed[:, None, None]
    return jnp.where(allowed, scores, HIDDEN), allowed, slope


def visible(query_S, key_T, query_segments_BS, key_segments_BT, window: int | None) -> jax.Array:
    """Return which keys queries see, `(B or 1, S, T)`, from their places in the row and their documents."""
    allowed = key_T <= query_S[:, None]
    if window is not None:
        allowed &= key_T > query_S[:, None] - window
    if query_segments_BS is None:
        return allowed[None]
    return allowed & (query_segments_BS[:, :, None] == key_segments_BT[:, None])


def _meets(query_start, key_start, options: Options) -> jax.Array:
    """Return whether any query of a block may see any key of a block, by their places alone."""
    meets = key_start <= query_start
    if options.window is not None:
        meets &= key_start + options.block > query_start - options.window + 1
    return meets


def _backward(options: Options, residuals, dout_BSHK):
    q_BSHK, k_BSGK, v_BSGK, segments_BS, out_BSHK, log_total = residuals
    held = _held(k_BSGK, v_BSGK, segments_BS, options)
    G = k_BSGK.shape[2]
    q = _queries(q_BSHK, G, options)
    dout, out = (_blocks(_grouped(x, G), options) for x in (dout_BSHK, out_BSHK))
    # The sum of the probabilities times their gradients (Dao 2023, section 2.3.2), as the scores lie.
    through = jnp.sum(dout.astype(jnp.float32) * out, axis=-1).transpose(0, 1, 3, 4, 2)
    own = (q, dout, log_total, through, held.segments, held.starts_N)

    def visit(dq, there: Travelling, dk_and_dv):
        def of_keys(dq, block_and_gradients):
            block, dk_and_dv = block_and_gradients

            def of_queries(dk_and_dv, mine_and_dq):
                mine, dq = mine_and_dq
                add = partial(_add_gradients, mine, block, options)
                meets = _meets(mine[-1], block.starts_N, options)
                dq, dk_and_dv = jax.lax.cond(meets, add, lambda *s: s, dq, dk_and_dv)
                return dk_and_dv, dq

            dk_and_dv, dq = jax.lax.scan(of_queries, dk_and_dv, (own, dq))
            return dq, dk_and_dv

        return jax.lax.scan(of_keys, dq, (there, dk_and_dv))

    def step(carry, _):
        dq, there, gradients = carry
        coming = _onward(there, options)
        dq, gradients = visit(dq, there, gradients)
        return (dq, coming, _onward(gradients, options)), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (held.k, held.v))
    start = (jnp.zeros(q.shape, jnp.float32), held, zeros)
    (dq, last, gradients), _ = jax.lax.scan(step, start, None, length=options.ways - 1)
    dq, gradients = visit(dq, last, gradients)
    dk, dv = (_row(x).astype(k_BSGK.dtype) for x in _onward(gradients, options))  # back where they belong
    dq = (_row(dq) * q_BSHK.shape[-1] ** -0.5).reshape(q_BSHK.shape).astype(q_BSHK.dtype)
    return dq, dk, dv, None


def _add_gradients(mine, block: Travelling, options: Options, dq, dk_and_dv):
    """Add what a block of queries and a block of keys and values give to each other's gradients."""
    q, dout, log_total, through, segments, start = mine
    dk, dv = dk_and_dv
    scores, allowed, slope = _scores(q, segments, start, block, options)
    probs = jnp.where(allowed, jnp.exp(scores - log_total[..., None]), 0)
    dprobs = jnp.einsum("BLGQK,BMGK->BGQLM", dout, block.v, preferred_element_type=jnp.float32)
    dscores = probs * (dprobs - through[..., None])
    dscores = (dscores if slope is None else dscores * slope).astype(q.dtype)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    dq += product("BGQLM,BMGK->BLGQK", dscores, block.k)
    dk += product("BGQLM,BLGQK->BMGK", dscores, q)
    dv += product("BGQLM,BLGQK->BMGK", probs.astype(q.dtype), dout)
    return dq, (dk, dv)


def _held(k_BSGK, v_BSGK, segments_BS, options: Options) -> Travelling:
    segments = None if segments_BS is None else _blocks(segments_BS, options)
    starts_N = options.starts()[jax.lax.axis_index(options.axis)]
    return Travelling(_blocks(k_BSGK, options), _blocks(v_BSGK, options), segments, starts_N)


def _queries(q_BSHK, num_kv_heads: int, options: Options) -> jax.Array:
    """Return scaled queries in blocks, `(N, B, L, G, Q, K)`."""
    return _blocks(_grouped(q_BSHK * q_BSHK.shape[-1] ** -0.5, num_kv_heads), options)


def _grouped(x_BSHK: jax.Array, num_kv_heads: int) -> jax.Array:
    B, S, H, K = x_BSHK.shape
    return x_BSHK.reshape(B, S, num_kv_heads, H // num_kv_heads, K)


def _blocks(x: jax.Array, options: Options) -> jax.Array:
    """Turn `(B, S, ...)` into `(N, B, L, ...)`."""
    return jnp.swapaxes(x.reshape(x.shape[0], -1, options.block, *x.shape[2:]), 0, 1)


def _row(x: jax.Array) -> jax.Array:
    """Turn `(N, B, L, ...)` into `(B, S, ...)`."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _onward(tree: Any, options: Options) -> Any:
    """Hand everything to the next device of the ring, and take what the one before had."""
    round_ = [(i, (i + 1) % options.ways) for i in range(options.ways)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, options.axis, round_), tree)


_ring: Any = jax.custom_vjp(_primal, nondiff_argnums=(4,))
_ring.defvjp(_forward, _backward)
