"""Text generation with a key-value cache, from the parameters as they are trained.

Legend: B batch, S prompt, N new tokens, V vocab.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import params as param_tree
from bigjax.config import BATCH_AXES
from bigjax.errors import UserError
from bigjax.models import Model
from bigjax.sharding import UNSHARDED, Layout

MIN_BUCKET = 32
"""The shortest padded prompt and the shortest buffer of new tokens."""


class GenerationError(UserError):
    """The prompts, the lengths or the sampling settings make no sense, or do not fit the model."""


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | None = None,
    eos_id: int | None = None,
    layout: Layout = UNSHARDED,
) -> list[list[int]]:
    """Return the tokens that follow each prompt, up to and without `eos_id`.

    Row r's n-th token depends on `key`, r and n only, besides its own prompt. Prompts and buffers are padded to powers
    of two, so calls of about the same lengths share one compiled program.

    Args:
      prompts: token ids, of any lengths.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: sample from the k most likely tokens only (Fan et al. 2018, section 5.1).
      top_p: sample from the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1),
        among those that `top_k` leaves.
      key: draws the tokens; may be None at temperature 0.

    Raises:
      GenerationError: naming the argument that makes no sense, or the lengths that the model has no positions for.
    """
    check(model, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    if temperature and key is None:
        raise GenerationError(f"temperature={temperature} draws at random and needs a key")
    ways = prod(layout.sizes.get(axis, 1) for axis in BATCH_AXES)
    rows = -(-len(prompts) // ways) * ways
    length = _bucket(max(map(len, prompts)))
    tokens_BS = np.zeros((rows, length), np.int32)
    starts_B = np.full(rows, length - 1, np.int32)
    for row, prompt in enumerate(prompts):
        starts_B[row] = length - len(prompt)
        tokens_BS[row, starts_B[row] :] = prompt
    run = _program(model, _Key(layout), _bucket(max_new_tokens), temperature == 0, top_k, top_p is not None)
    settings = {
        "temperature": np.float32(temperature or 1),
        "top_p": np.float32(1 if top_p is None else top_p),
        "key": jax.random.key(0) if key is None else key,
        # Rows that only fill the batch up are finished from the start.
        "done_B": np.arange(rows) >= len(prompts),
        "eos_id": np.int32(-1 if eos_id is None else eos_id),
        "limit": np.int32(max_new_tokens),
    }
    out_BN, counts_B = jax.device_get(run(params, tokens_BS, starts_B, settings))
    return [out_BN[row, : counts_B[row]].tolist() for row in range(len(prompts))]


def sample(
    logits_BV: jax.Array, key: jax.Array, rows_B: jax.Array, temperature: Any, top_k: int | None, top_p: Any
) -> jax.Array:
    """Draw one token a row, `(B,)`, by the Gumbel-max trick; each row has its own key, `key` folded with its number."""
    logits_BV = logits_BV / temperature
    if top_k is not None or top_p is not None:
        ranked_BV = jax.lax.top_k(logits_BV, min(top_k or logits_BV.shape[1], logits_BV.shape[1]))[0]
        cutoff_B1 = ranked_BV[:, -1:]
        if top_p is not None:
            probs = jax.nn.softmax(ranked_BV, axis=-1)
            before = jnp.cumsum(probs, axis=-1) - probs
            # Of the tokens that the nucleus has not yet reached p without, the least likely; the first always counts.
            inside = (before < top_p) | (jnp.arange(ranked_BV.shape[1]) == 0)
            cutoff_B1 = jnp.min(jnp.where(inside, ranked_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < cutoff_B1, -jnp.inf, logits_BV)
    draw = partial(jax.random.gumbel, shape=logits_BV.shape[1:])
    noise_BV = jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows_B)
    return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)


@dataclass(frozen=True)
class _Key:
    """A layout that can be the key of a cache."""

    layout: Layout

    def __hash__(self) -> int:
        return hash(tuple(self.layout.sizes.items()))


@lru_cache(maxsize=16)
def _program(
    model: Model, shared: _Key, max_new: int, greedy: bool, top_k: int | None, nucleus: bool
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return `run(params, tokens_BS, starts_B, settings) -> (tokens (B, N), how many of them count (B,))`."""
    cfg, family = model.cfg, model.family
    layout = shared.layout
    if layout.sizes:
        # A single token cannot be split along the sequence.
        layout = replace(layout, activations={**layout.activations, "residual_seq": ()})

    def next_token(head, x_B1D, n, settings):
        logits_BV = layout.place(family.next_logits(head, x_B1D[:, 0], cfg, layout), "batch", "seq")
        if greedy:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        rows_B = layout.place(jnp.arange(x_B1D.shape[0]), "batch")
        key = jax.random.fold_in(settings["key"], n)
        return sample(logits_BV, key, rows_B, settings["temperature"], top_k, settings["top_p"] if nucleus else None)

    def loop(params, head, tokens_BS, starts_B, settings):
        B, S = tokens_BS.shape
        tokens_BS, starts_B, done_B = (
            layout.place(tokens_BS, "batch", "seq"),
            layout.place(starts_B, "batch"),
            layout.place(settings["done_B"], "batch"),
        )
        x_BSD, cache = family.prefill(params, tokens_BS, starts_B, S + max_new, cfg, layout)
        empty_BN = layout.place(jnp.zeros((B, max_new), jnp.int32), "batch", "seq")
        none_B = layout.place(jnp.zeros(B, jnp.int32), "batch")

        def add(n, x_B1D, done_B, out_BN, counts_B, cache):
            """Choose the n-th token of each row and write it down."""
            token_B = next_token(head, x_B1D, n, settings)
            done_B |= token_B == settings["eos_id"]
            out_BN = jax.lax.dynamic_update_slice_in_dim(out_BN, token_B[:, None], n, axis=1)
            return n + 1, token_B, done_B, out_BN, counts_B + ~done_B, cache

        def running(state):
            n, _, done_B, *_ = state
            return (n < settings["limit"]) & ~jnp.all(done_B)

        def step(state):
            n, token_B, done_B, out_BN, counts_B, cache = state
            x_B1D, cache = family.decode(params, token_B[:, None], cache, cfg, layout)
            return add(n, x_B1D, done_B, out_BN, counts_B, cache)

        first = add(jnp.int32(0), x_BSD[:, -1:], done_B, empty_BN, none_B, cache)
        _, _, _, out_BN, counts_B, _ = jax.lax.while_loop(running, step, first)
        # Whole on every device, so that every process can read all rows.
        return layout.place(out_BN, "seq", "seq"), layout.place(counts_B, "seq")

    prepare, loop = jax.jit(partial(_prepare, model, layout), static_argnums=1), jax.jit(loop)

    def run(params, *inputs):
        return loop(*prepare(params, _fits(model, layout)), *inputs)

    return run


def _prepare(model: Model, layout: Layout, params: Any, gather: bool) -> tuple[Any, list[jax.Array]]:
    """Return the parameters as the loop reads them (compute dtype, one tree a layer) and the output matrix."""
    if gather:
        params = layout.gather(params, model.specs, model.cfg.dtype)
    else:
        params = param_tree.cast(model.specs, params, model.cfg.dtype)
    head = model.family.head_pieces(params, model.cfg, layout)
    return {**params, "blocks": param_tree.unstack(params["blocks"])}, head


def _fits(model: Model, layout: Layout) -> bool:
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


def _bucket(length: int) -> int:
    """Return the smallest power of two that holds `length`."""
    return max(MIN_BUCKET, 1 << (length - 1).bit_length())


def check(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """Raise the GenerationError that `generate` would raise for these arguments."""
    cfg = model.cfg
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise GenerationError("a prompt is empty: it must have at least one token")
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise GenerationError(f"temperature={temperature} must be 0 (the likeliest token) or above")
    if top_k is not None and top_k < 1:
        raise GenerationError(f"top_k={top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise GenerationError(f"top_p={top_p} must be above 0 and at most 1")
    for row, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= cfg.vocab_size:
            raise GenerationError(f"prompt {row} has token ids outside 0 to model.vocab_size={cfg.vocab_size} minus 1")
    longest = max(map(len, prompts))
    if cfg.positions == "learned" and longest + max_new_tokens > cfg.max_seq_len:
        raise GenerationError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} are more than the table of learned "
            f"positions, model.max_seq_len={cfg.max_seq_len}"
        )
