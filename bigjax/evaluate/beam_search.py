"""Beam search: the likeliest texts that several hypotheses at a time lead to.

A hypothesis Y is ranked by log P(Y) / lp(Y) with lp(Y) = ((5 + |Y|) / 6)^alpha (Wu et al. 2016, section 7, equation 14,
without its coverage penalty); |Y| counts the tokens that are written, the end among them.

Legend: B batch, W beams, C candidates (2 W), N new tokens, V vocab.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.evaluate.decoding import LayoutKey, begin, bucket, ends_of, fits, one_by_one, pad_left, prepare
from bigjax.evaluate.generation import GenerationError, check, check_start
from bigjax.models import Model
from bigjax.sharding import UNSHARDED, Layout

IMPOSSIBLE = -1e30
"""The score of a hypothesis that there is none of."""

STRONGEST = 4.0
"""The largest alpha: lp(Y) of 600,000 tokens is then 1e20, and what is impossible still ranks below what is not."""


def beam_search(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    beams: int,
    length_penalty: float = 0.0,
    eos_id: int | Sequence[int] | None = None,
    start_id: int | None = None,
    layout: Layout = UNSHARDED,
) -> list[list[int]]:
    """Return the best hypothesis of each row, without its end; arguments not listed are as for `generate`.

    Of the 2 W likeliest continuations those that end are kept, and the W best others go on, until no hypothesis can
    become better than the W that ended, or at `max_new_tokens`, where the open ones count too.

    Args:
      length_penalty: alpha; 0 ranks by probability alone, and more, up to `STRONGEST`, favours longer texts.

    Raises:
      GenerationError: naming the argument that makes no sense, or the lengths that the model has no positions for.
    """
    check(model, prompts, max_new_tokens=max_new_tokens)
    check_start(model, start_id)
    check_beams(model, beams, length_penalty)
    tokens_BS, starts_B, filling_B = pad_left(prompts, layout)
    run = _program(model, LayoutKey(layout), bucket(max_new_tokens), beams)
    settings = {
        "filling_B": filling_B,
        "length_penalty": np.float32(length_penalty),
        "eos_id": np.array(ends_of(eos_id) or [-1], np.int32),
        "start_id": np.int32(start_id or 0),
        "limit": np.int32(max_new_tokens),
    }
    out_BN, counts_B = jax.device_get(run(params, tokens_BS, starts_B, settings))
    return [out_BN[row, : counts_B[row]].tolist() for row in range(len(prompts))]


def check_beams(model: Model, beams: int, length_penalty: float) -> None:
    """Raise GenerationError if there cannot be that many beams, or the penalty makes no sense."""
    if not 1 <= beams <= model.cfg.vocab_size // 2:
        raise GenerationError(f"beams={beams} must be 1 to half of model.vocab_size={model.cfg.vocab_size}")
    if not 0 <= length_penalty <= STRONGEST:
        raise GenerationError(f"length_penalty={length_penalty} must be 0 to {STRONGEST:g}")


class _Beams(NamedTuple):
    """Hypotheses, open or ended: log probabilities or ranks `(B, W)`, tokens `(B, W, N)`, how many count `(B, W)`."""

    scores: jax.Array
    tokens: jax.Array
    counts: jax.Array

    def best(self, count: int, scores: jax.Array) -> tuple["_Beams", jax.Array]:
        """Return those with the highest of other scores, and their places."""
        top, places = jax.lax.top_k(scores, count)
        return _Beams(top, _pick(self.tokens, places), _pick(self.counts, places)), places


def _pick(x: jax.Array, places_BC: jax.Array) -> jax.Array:
    """Return `x[b, places[b, c]]`, exactly: no gather, which would not say how the mesh splits its result."""
    chosen = places_BC[:, :, None] == jnp.arange(x.shape[1])
    chosen = chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2))
    return jnp.sum(jnp.where(chosen, x[:, None], jnp.zeros((), x.dtype)), axis=2)


def _resized(x: jax.Array, shape: tuple[int, ...], spec: tuple) -> jax.Array:
    where = jax.P(*spec) if not jax.typeof(x).sharding.mesh.empty else None
    return jax.lax.reshape(x, shape, out_sharding=where)


def _flat(x: jax.Array) -> jax.Array:
    """Make rows and beams one axis."""
    spec = jax.typeof(x).sharding.spec
    return _resized(x, (x.shape[0] * x.shape[1], *x.shape[2:]), (spec[0], *spec[2:]))


def _apart(x: jax.Array, beams: int) -> jax.Array:
    """Undo `_flat`."""
    spec = jax.typeof(x).sharding.spec
    return _resized(x, (x.shape[0] // beams, beams, *x.shape[1:]), (spec[0], None, *spec[1:]))


def _repeat(x: jax.Array, beams: int) -> jax.Array:
    return _flat(jnp.broadcast_to(x[:, None], (x.shape[0], beams, *x.shape[1:]))) if x.ndim else x


def _follow(cache: Any, parents_BW: jax.Array, beams: int) -> Any:
    """Give every beam the keys and values of the one that it continues; all else is the same for a row's beams."""
    move = lambda x: _flat(_pick(_apart(x, beams), parents_BW))  # noqa: E731
    return cache._replace(k=jax.tree.map(move, cache.k), v=jax.tree.map(move, cache.v))


@lru_cache(maxsize=16)
def _program(model: Model, shared: LayoutKey, max_new: int, beams: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return `run(params, tokens_BS, starts_B, settings) -> (tokens (B, N), how many of them count (B,))`."""
    cfg, family, layout = model.cfg, model.family, one_by_one(shared.layout)

    def loop(params, head, tokens_BS, starts_B, settings):
        B, alpha, limit = tokens_BS.shape[0], settings["length_penalty"], settings["limit"]
        filling_B = layout.place(settings["filling_B"], "batch")

        def penalty(length):
            return ((5 + length) / 6) ** alpha

        def log_probs(x_R1D) -> jax.Array:
            """Return the log probabilities of every beam's next token, `(B, W, V)`."""
            logits = layout.place(family.next_logits(head, x_R1D[:, 0], cfg, layout), "batch", "seq")
            return _apart(jax.nn.log_softmax(logits, axis=-1), beams)

        def add(n, next_BWV, alive: _Beams, ended: _Beams):
            """Continue every open hypothesis by its n-th token; also return which one each continues."""
            V = next_BWV.shape[-1]
            spec = jax.typeof(next_BWV).sharding.spec
            every = _resized(alive.scores[..., None] + next_BWV, (B, beams * V), (spec[0], None))
            scores, flat = jax.lax.top_k(every, 2 * beams)
            parents, tokens = flat // V, flat % V
            here = jnp.arange(max_new) == n
            written = jnp.where(here, tokens[..., None], _pick(alive.tokens, parents))
            ends = jnp.any(tokens[..., None] == settings["eos_id"], axis=-1)
            found = _Beams(scores, written, jnp.where(ends, n, n + 1))
            both = _Beams(*(jnp.concatenate(pair, axis=1) for pair in zip(ended, found, strict=True)))
            ranks = jnp.where(ends, scores / penalty(n + 1), IMPOSSIBLE)
            ended, _ = both.best(beams, jnp.concatenate([ended.scores, ranks], axis=1))
            alive, places = found.best(beams, jnp.where(ends, IMPOSSIBLE, scores))
            return alive, ended, _pick(parents, places)

        def running(state):
            n, alive, ended, *_ = state
            # Longer texts are less likely and divided by more: no open one can end with a higher rank than this.
            reachable = alive.scores.max(axis=1) / penalty(limit)
            over = filling_B | (ended.scores.min(axis=1) >= reachable)
            return (n < limit) & ~jnp.all(over)

        def step(state):
            n, alive, ended, cache = state
            last = jnp.sum(jnp.where(jnp.arange(max_new) == n - 1, alive.tokens, 0), axis=-1)
            x_R1D, cache = family.decode(params, _flat(last)[:, None], cache, cfg, layout)
            alive, ended, parents = add(n, log_probs(x_R1D), alive, ended)
            return n + 1, alive, ended, _follow(cache, parents, beams)

        x_B1D, cache = begin(model, params, tokens_BS, starts_B, max_new, settings["start_id"], layout)
        cache = jax.tree.map(lambda x: _repeat(x, beams), cache)
        none = jnp.zeros((B, beams), jnp.float32) + IMPOSSIBLE
        empty = jnp.zeros((B, beams, max_new), jnp.int32), jnp.zeros((B, beams), jnp.int32)
        places = ("batch", "seq"), ("batch", "seq", "seq"), ("batch", "seq")
        ended = _Beams(*(layout.place(x, *axes) for x, axes in zip((none, *empty), places, strict=True)))
        # All beams of a row are alike at first: only one of them counts.
        alive = ended._replace(scores=jnp.where(jnp.arange(beams) == 0, 0.0, ended.scores))
        alive, ended, _ = add(jnp.int32(0), log_probs(_repeat(x_B1D, beams)), alive, ended)
        n, alive, ended, _ = jax.lax.while_loop(running, step, (jnp.int32(1), alive, ended, cache))
        every = _Beams(*(jnp.concatenate(pair, axis=1) for pair in zip(ended, alive, strict=True)))
        best, _ = every.best(1, jnp.concatenate([ended.scores, alive.scores / penalty(n)], axis=1))
        # Whole on every device, so that every process can read all rows.
        return layout.place(best.tokens[:, 0], "seq", "seq"), layout.place(best.counts[:, 0], "seq")

    prepared, loop = jax.jit(partial(prepare, model, layout), static_argnums=1), jax.jit(loop)

    def run(params, *inputs):
        return loop(*prepared(params, fits(model, layout)), *inputs)

    return run
