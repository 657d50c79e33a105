"""How likely a model finds texts, after others or by themselves, by the conventions of lm-evaluation-harness.

Legend: B batch, S what is read, T what is scored, D model, V vocab.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.config import Config, ModelConfig
from bigjax.data import Tokenizer
from bigjax.data.cutting import ends_of
from bigjax.data.text_data import for_text
from bigjax.errors import UserError
from bigjax.evaluate.decoding import LayoutKey, bucket, pad_left
from bigjax.models import Model
from bigjax.sharding import Layout
from bigjax.tasks import losses

Ids = Sequence[int]


class LikelihoodError(UserError):
    """A text has no likelihood: there is nothing to score, no room for it, or the model predicts no next token."""


class Likelihood(NamedTuple):
    """Of one text: its log probability in nats, and whether each of its tokens is the likeliest one."""

    log_prob: float
    greedy: bool


@dataclass(frozen=True)
class Scorer:
    """A trained model and what belongs to it; `train.global_batch_size` texts are scored at a time.

    A row is at most `data.seq_len` tokens long. Sparse layers drop nothing: what a text gets must not depend on what it
    is padded with. Before a text stands what the tokenizer puts there for a decoder, and `prefix_id` where there is
    nothing else to predict its first token from.
    """

    cfg: Config
    model: Model
    weights: Any
    tokenizer: Tokenizer
    layout: Layout

    def __post_init__(self):
        check(self.cfg.model)

    @cached_property
    def _prompts(self) -> Tokenizer:
        """The tokenizer of questions, in which a special token that is spelled out is one, as for transformers."""
        return self.tokenizer.with_special()

    @property
    def prefix_id(self) -> int:
        """The token before a text: its start, the end of another one, or a line end where the tokenizer has neither.

        Raises:
          LikelihoodError: it has none of these.
        """
        for id_ in (self.tokenizer.bos_id, self.tokenizer.eos_id):
            if id_ is not None:
                return id_
        if not len(found := self.tokenizer.encode("\n")):
            raise LikelihoodError(
                "the tokenizer has no token to start a text with: name an eos_token in its tokenizer_config.json"
            )
        return int(found[-1])

    def after(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Return the likelihood of each second text after the first, which may be empty.

        A context that is too long loses its beginning. The tokens of the second text are those of both together without
        as many as the first has alone, spaces at the end of which count to the second; an encoder-decoder reads the
        first and writes the second, each with tokens of its own.

        Raises:
          LikelihoodError: a second text is empty, or longer than a row.
        """
        return self._score([self._encode(context, text) for context, text in pairs])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """Return the log probability of each whole text in nats, in pieces as long as a row; 0 for an empty one.

        Every token is predicted once, from those before it in its row; the last row is as full as the others.

        Raises:
          LikelihoodError: an encoder-decoder predicts no text by itself.
        """
        if self.cfg.model.kind == "encdec":
            raise LikelihoodError("model.family='encdec' writes one text for another: it predicts none by itself")
        tokenizer = for_text(self.cfg, self.tokenizer)
        rows = [list(windows(tokenizer.encode(t).tolist(), self.prefix_id, self.cfg.data.seq_len)) for t in texts]
        scored = iter(self._score([pair for pairs in rows for pair in pairs]))
        return [sum(next(scored).log_prob for _ in pairs) for pairs in rows]

    def _encode(self, context: str, text: str) -> tuple[list[int], list[int]]:
        """Return both as ids, as lm-evaluation-harness splits them (`TemplateLM._encode_pair`)."""
        encode = lambda text: self._prompts.encode(text).tolist()  # noqa: E731
        kept = context.rstrip()
        context, text = kept, context[len(kept) :] + text
        if not text:
            raise LikelihoodError(f"there is nothing to score after {context[-40:]!r}")
        if self.cfg.model.kind == "encdec":
            first, second, room = encode(context), encode(text), self.cfg.data.target_len
            first = [*first[-(self.cfg.data.seq_len - 1) :], ends_of(self.tokenizer).end]
        else:
            first, whole, room = encode(context), encode(context + text), self.cfg.data.seq_len
            first, second = [*self.tokenizer.opening, *first] or [self.prefix_id], whole[len(first) :]
        if not 0 < len(second) <= room:
            raise LikelihoodError(
                f"{text[:40]!r} is {len(second)} tokens after its context: it must have 1 to {room}, as a row has"
            )
        return first, second

    def _score(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Likelihood]:
        """Score ids after ids, rows of about the same length together."""
        order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
        scored: dict[int, Likelihood] = {}
        size = self.cfg.train.global_batch_size
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            scored |= zip(chosen, self._score_batch([pairs[i] for i in chosen]), strict=True)
        return [scored[i] for i in range(len(pairs))]

    def _score_batch(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Likelihood]:
        encdec = self.cfg.model.kind == "encdec"
        length = self.cfg.data.seq_len
        rows = [list(context) if encdec else [*context, *text][:-1][-length:] for context, text in pairs]
        tokens_BS, starts_B, _ = pad_left(rows, self.layout)
        padding = [0] * (len(tokens_BS) - len(pairs))
        lengths_B = np.array([*(len(text) for _, text in pairs), *padding], np.int32)
        T = bucket(int(lengths_B.max()))
        targets_BT = np.zeros((len(tokens_BS), T), np.int32)
        for row, (_, text) in enumerate(pairs):
            # A decoder's predictions of them end with its rows.
            targets_BT[row, slice(0, len(text)) if encdec else slice(T - len(text), T)] = text
        start_id = np.int32(ends_of(self.tokenizer).start if encdec else 0)
        run = _program(Model(for_any_length(self.cfg.model), self.model.family), LayoutKey(self.layout))
        scores = jax.device_get(run(self.weights, tokens_BS, starts_B, targets_BT, lengths_B, start_id))
        return [Likelihood(float(p), bool(g)) for p, g in zip(*scores, strict=True)][: len(pairs)]


def check(cfg: ModelConfig) -> None:
    """Raise LikelihoodError if such a model predicts no next token."""
    if cfg.kind == "encoder":
        raise LikelihoodError("model.family='encoder' predicts no next token: take a decoder or an encoder-decoder")


def windows(ids: Ids, prefix_id: int, length: int) -> Iterator[tuple[Ids, Ids]]:
    """Cut a text into rows of at most `length` tokens: what is known, and what is to be predicted after it.

    As lm-evaluation-harness does with a context of one token: each row starts with the last token of the one before it,
    the first with `prefix_id`, and the last row reaches back until it is full.
    """
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        known = [prefix_id] if start == 0 else ids[max(end - length - 1, 0) : start]
        yield known, ids[start:end]


def for_any_length(cfg: ModelConfig) -> ModelConfig:
    """Return the same model for rows of any length: capacities and some attention kernels depend on it."""
    moe = dataclasses.replace(cfg.moe, capacity_factor=None, group_size=0)
    attention = "blocked" if cfg.kind == "decoder" else "reference"
    return dataclasses.replace(cfg, moe=moe, attention=attention)


@lru_cache(maxsize=16)
def _program(model: Model, shared: LayoutKey) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return `run(params, tokens_BS, starts_B, targets_BT, lengths_B, start_id) -> (log P (B,), greedy (B,))`."""
    cfg, family, layout = model.cfg, model.family, shared.layout.whole_rows()

    def hidden(params, tokens_BS, starts_B, targets_BT, start_id) -> jax.Array:
        """Return the hidden states `(B, T, D)` that predict the targets."""
        S, T = tokens_BS.shape[1], targets_BT.shape[1]
        positions_BS = jnp.maximum(jnp.arange(S) - starts_B[:, None], 0)
        segments_BS = (jnp.arange(S) >= starts_B[:, None]).astype(jnp.int32)
        how = {"positions_BS": positions_BS, "segments_BS": segments_BS, "layout": layout}
        if cfg.kind == "encdec":
            first_B1 = jnp.full_like(targets_BT[:, :1], start_id)
            how["inputs_BT"] = jnp.concatenate([first_B1, targets_BT[:, :-1]], axis=1)
            return family.apply(params, tokens_BS, cfg, **how)[0]
        x_BSD = layout.place(family.apply(params, tokens_BS, cfg, **how)[0], "batch", "seq", "embed")
        short = max(T - S, 0)  # where a bucket of targets is longer than one of rows
        return jnp.pad(x_BSD, ((0, 0), (short, 0), (0, 0)))[:, -T:]

    def run(params, tokens_BS, starts_B, targets_BT, lengths_B, start_id):
        tokens_BS, targets_BT = (layout.place(x, "batch", "seq") for x in (tokens_BS, targets_BT))
        starts_B, lengths_B = layout.place(starts_B, "batch"), layout.place(lengths_B, "batch")
        x_BTD = hidden(params, tokens_BS, starts_B, targets_BT, start_id)
        logits_BTV = family.logits(params, x_BTD, cfg, layout)
        places_T = jnp.arange(targets_BT.shape[1])
        from_the_end = places_T if cfg.kind == "encdec" else places_T[::-1]
        scored_BT = from_the_end < lengths_B[:, None]
        log_prob_B = -jnp.sum(jnp.where(scored_BT, losses.token_nll(logits_BTV, targets_BT), 0), axis=1)
        greedy_B = jnp.all((jnp.argmax(logits_BTV, axis=-1) == targets_BT) | ~scored_BT, axis=1)
        # Whole on every device, so that every process can read all rows.
        return layout.place(log_prob_B, "seq"), layout.place(greedy_B, "seq")

    return jax.jit(run)
