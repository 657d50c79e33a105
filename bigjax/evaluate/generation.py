"""Text generation with a key-value cache, from the parameters as they are trained.

Legend: B batch, S prompt, N new tokens, V vocab, K stop sequences, M length of the longest of them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError
from bigjax.evaluate.decoding import LayoutKey, begin, bucket, ends_of, fits, one_by_one, pad_left, prepare
from bigjax.evaluate.sampling import sample
from bigjax.models import Model
from bigjax.sharding import Layout

ANY, NONE = -1, -2
"""In a stop sequence: matches every token; matches none."""

COLDEST = 1e-30
"""Below this temperature the likeliest token is taken: only ties are drawn there, and logits over it leave float32."""


LONGEST = 2**30
"""The most tokens of a text: their places are int32, and buffers are padded to powers of two."""


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
    min_p: float | None = None,
    key: jax.Array | None = None,
    eos_id: int | Sequence[int] | None = None,
    stop: Sequence[Sequence[int]] = (),
    start_id: int | None = None,
    layout: Layout | None = None,
) -> list[list[int]]:
    """Return the tokens that follow each prompt, or that an encoder-decoder makes of it, up to and without an end.

    Row r's n-th token depends on `key`, r and n only, besides its own prompt. Prompts and buffers are padded to powers
    of two, so calls of about the same lengths share one compiled program.

    Args:
      prompts: token ids, of any lengths; an encoder-decoder's are rows as it read them in training, with their end.
      temperature: divides the logits; 0, or anything below `COLDEST`, takes the most likely token.
      top_k: sample from the k most likely tokens only (Fan et al. 2018, section 5.1).
      top_p: sample from the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1),
        among those that `top_k` leaves.
      min_p: sample from the tokens with at least this share of the probability of the most likely one (Nguyen et al.
        2024, section 3).
      key: draws the tokens; may be None at temperature 0.
      eos_id: ends a row, as does any of several, and each sequence of tokens in `stop`.
      start_id: what an encoder-decoder writes after.
      layout: where each axis lives; by default on the mesh that `jax.set_mesh` has set, if any.

    Raises:
      GenerationError: naming the argument that makes no sense, or the lengths that the model has no positions for.
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    check(model, prompts, max_new_tokens=max_new_tokens, stop=stop, **settings)
    check_start(model, start_id)
    if temperature and key is None:
        raise GenerationError(f"temperature={temperature} draws at random and needs a key")
    layout = model.on_the_mesh() if layout is None else layout
    tokens_BS, starts_B, done_B = pad_left(prompts, layout)
    greedy = temperature < COLDEST
    masks = top_p is not None, min_p is not None
    run = _program(model, LayoutKey(layout), bucket(max_new_tokens), greedy, top_k, *masks)
    inputs = {
        "temperature": np.float32(1 if greedy else temperature),
        "top_p": np.float32(1 if top_p is None else top_p),
        "min_p": np.float32(0 if min_p is None else min_p),
        "key": jax.random.key(0) if key is None else key,
        # Rows that only fill the batch up are finished from the start.
        "done_B": done_B,
        "stop_KM": _stop_array([*stop, *([id_] for id_ in ends_of(eos_id))]),
        "start_id": np.int32(start_id or 0),
        "limit": np.int32(max_new_tokens),
    }
    out_BN, counts_B = jax.device_get(run(params, tokens_BS, starts_B, inputs))
    return [out_BN[row, : counts_B[row]].tolist() for row in range(len(prompts))]


def _stop_array(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the sequences, at least one, `(K, M)`, the shorter ones after `ANY`."""
    longest = max(map(len, sequences), default=1)
    rows = [[*[ANY] * (longest - len(sequence)), *sequence] for sequence in sequences] or [[NONE]]
    return np.array(rows, np.int32)


@lru_cache(maxsize=16)
def _program(
    model: Model, shared: LayoutKey, max_new: int, greedy: bool, top_k: int | None, nucleus: bool, threshold: bool
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return `run(params, tokens_BS, starts_B, settings) -> (tokens (B, N), how many of them count (B,))`."""
    cfg, family, layout = model.cfg, model.family, one_by_one(shared.layout)

    def next_token(head, x_B1D, n, settings):
        logits_BV = layout.place(family.next_logits(head, x_B1D[:, 0], cfg, layout), "batch", "seq")
        if greedy:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        rows_B = layout.place(jnp.arange(x_B1D.shape[0]), "batch")
        key = jax.random.fold_in(settings["key"], n)
        top_p, min_p = settings["top_p"] if nucleus else None, settings["min_p"] if threshold else None
        return sample(logits_BV, key, rows_B, settings["temperature"], top_k, top_p, min_p)

    def loop(params, head, tokens_BS, starts_B, settings):
        B, stop_KM = tokens_BS.shape[0], settings["stop_KM"]
        lengths_K = jnp.sum(stop_KM != ANY, axis=1)
        done_B = layout.place(settings["done_B"], "batch")
        x_B1D, cache = begin(model, params, tokens_BS, starts_B, max_new, settings["start_id"], layout)
        empty_BN = layout.place(jnp.zeros((B, max_new), jnp.int32), "batch", "seq")
        latest_BM = layout.place(jnp.full((B, stop_KM.shape[1]), NONE, jnp.int32), "batch", "seq")
        none_B = layout.place(jnp.zeros(B, jnp.int32), "batch")

        def add(n, x_B1D, latest_BM, done_B, out_BN, counts_B, cache):
            """Choose the n-th token of each row and write it down."""
            token_B = next_token(head, x_B1D, n, settings)
            latest_BM = jnp.concatenate([latest_BM[:, 1:], token_B[:, None]], axis=1)
            # A token that nobody chose, such as one before the first, is `NONE` and matches no stop sequence.
            matched_BK = jnp.all((latest_BM[:, None] == stop_KM) | (stop_KM == ANY), axis=-1)
            ended_B = jnp.max(jnp.where(matched_BK, lengths_K, 0), axis=1)
            counts_B += jnp.where(done_B, 0, 1 - ended_B)
            out_BN = jax.lax.dynamic_update_slice_in_dim(out_BN, token_B[:, None], n, axis=1)
            return n + 1, latest_BM, done_B | (ended_B > 0), out_BN, counts_B, cache

        def running(state):
            n, _, done_B, *_ = state
            return (n < settings["limit"]) & ~jnp.all(done_B)

        def step(state):
            n, latest_BM, done_B, out_BN, counts_B, cache = state
            x_B1D, cache = family.decode(params, latest_BM[:, -1:], cache, cfg, layout)
            return add(n, x_B1D, latest_BM, done_B, out_BN, counts_B, cache)

        first = add(jnp.int32(0), x_B1D, latest_BM, done_B, empty_BN, none_B, cache)
        _, _, _, out_BN, counts_B, _ = jax.lax.while_loop(running, step, first)
        # Whole on every device, so that every process can read all rows.
        return layout.place(out_BN, "seq", "seq"), layout.place(counts_B, "seq")

    prepared, loop = jax.jit(partial(prepare, model, layout), static_argnums=1), jax.jit(loop)

    def run(params, *inputs):
        return loop(*prepared(params, fits(model, layout)), *inputs)

    return run


def check(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Sequence[Sequence[int]] = (),
) -> None:
    """Raise the GenerationError that `generate` would raise for these arguments."""
    cfg = model.cfg
    if cfg.kind == "encoder":
        raise GenerationError("model.family='encoder' writes no text: take a decoder or an encoder-decoder")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise GenerationError("a prompt is empty: it must have at least one token")
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise GenerationError(f"temperature={temperature} must be 0 (the likeliest token) or above")
    if top_k is not None and top_k < 1:
        raise GenerationError(f"top_k={top_k} must be at least 1")
    for name, share in (("top_p", top_p), ("min_p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise GenerationError(f"{name}={share} must be above 0 and at most 1")
    if not all(len(sequence) for sequence in stop):
        raise GenerationError("a stop sequence is empty: it must have at least one token")
    for row, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= cfg.vocab_size:
            raise GenerationError(f"prompt {row} has token ids outside 0 to model.vocab_size={cfg.vocab_size} minus 1")
    longest = max(map(len, prompts))
    if longest + max_new_tokens > LONGEST:
        raise GenerationError(f"max_new_tokens={max_new_tokens} makes a text of more than {LONGEST:,} tokens")
    if cfg.positions == "learned" and longest + max_new_tokens > cfg.max_seq_len:
        raise GenerationError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} are more than the table of learned "
            f"positions, model.max_seq_len={cfg.max_seq_len}"
        )


def check_start(model: Model, start_id: int | None) -> None:
    """Raise GenerationError unless there is a token to start with exactly where the family needs one."""
    if (model.cfg.kind == "encdec") != (start_id is not None):
        raise GenerationError(f"start_id={start_id}, but model.family={model.cfg.family!r}: an encdec needs one")
