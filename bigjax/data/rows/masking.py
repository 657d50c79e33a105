"""Rows for predicting masked tokens (Devlin et al. 2019, section 3.1), masked afresh in every epoch.

Legend: B batch, S sequence, M predictions a row.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.rows.windows import Windows
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.tokenizers import Tokenizer


def num_predictions(seq_len: int, rate: float) -> int:
    """Return M, how many tokens of a full row are predicted: `rate` of them, at least one."""
    return max(1, round(seq_len * rate))


def row_generator(seed: int, row_id: int) -> np.random.Generator:
    """Return the randomness of one row of one epoch, a pure function of both numbers."""
    digest = hashlib.sha256(f"{seed}/{row_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16])))


LONGEST_WORD = 2 / 3
"""A word that takes more of the tokens wanted is not hidden whole: nothing else, or too little, would go beside it."""


def choose(
    rng: np.random.Generator, tokens: np.ndarray, rate: float, most: int, starts: np.ndarray | None
) -> np.ndarray:
    """Return the positions to predict, ascending: `rate` of the tokens, at least one and at most `most`.

    Whole words are taken in random order until one would go beyond the number wanted. The first is drawn by its tokens
    and the others are not: so each is as likely as any other, however long. Those longer than `LONGEST_WORD` of that
    number, as in a script without spaces, are taken token by token.

    Args:
      tokens: (n,) ids, at least one. starts: (n,) bool, where words start, to mask whole words. None: single tokens.
    """
    wanted = min(most, num_predictions(len(tokens), rate))
    if starts is None:
        return np.sort(rng.permutation(len(tokens))[:wanted])
    opens = starts.copy()
    opens[0] = True
    lengths = np.diff(np.append(np.flatnonzero(opens), len(tokens)))
    opens |= np.repeat(lengths, lengths) > max(1, LONGEST_WORD * wanted)
    bounds = np.append(np.flatnonzero(opens), len(tokens))
    first = int(np.searchsorted(bounds, rng.integers(len(tokens)), side="right")) - 1
    order = rng.permutation(len(bounds) - 1)
    order = np.concatenate([[first], order[order != first]])
    taken = order[np.cumsum(np.diff(bounds)[order]) <= wanted]
    words = np.split(np.arange(len(tokens)), bounds[1:-1])
    return np.sort(np.concatenate([words[word] for word in taken.tolist()]))


def replace(
    rng: np.random.Generator, tokens: np.ndarray, positions: np.ndarray, mask_id: int, ordinary: np.ndarray
) -> np.ndarray:
    """Hide `tokens` (n,) at `positions`: 80 % become `mask_id`, 10 % one of `ordinary`, 10 % stay."""
    draw = rng.random(len(positions))
    hidden = tokens[positions]
    hidden = np.where(draw < 0.8, mask_id, hidden)
    hidden = np.where((draw >= 0.8) & (draw < 0.9), rng.choice(ordinary, len(positions)), hidden)
    masked = tokens.copy()
    masked[positions] = hidden
    return masked


@dataclass(frozen=True, eq=False)
class Masking:
    """How the tokens of a row are hidden.

    Attributes:
      most: M. special: the ids of `pad`, `cls`, `sep` and `mask`. ordinary: ids that may stand in for another.
      word_starts: (vocab,) bool, to hide whole words.
    """

    rate: float
    most: int
    special: dict[str, int]
    ordinary: np.ndarray
    word_starts: np.ndarray | None

    @classmethod
    def build(cls, cfg: Config, tokenizer: Tokenizer, special: dict[str, int]) -> "Masking":
        """Mask as a config says; `special` holds the ids of `pad`, `cls`, `sep` and `mask`."""
        data, reserved = cfg.data, {*special.values(), tokenizer.eos_id}
        ordinary = np.array([i for i in range(tokenizer.vocab_size) if i not in reserved], np.int32)
        starts = tokenizer.word_starts if data.whole_word_masking else None
        return cls(data.mask_rate, num_predictions(data.seq_len, data.mask_rate), special, ordinary, starts)

    @property
    def identity(self) -> dict[str, Any]:
        whole = self.word_starts is not None
        return {"mask_rate": self.rate, "whole_word_masking": whole, "special": self.special}

    def hide(self, rng: np.random.Generator, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which places of some tokens (n,) are hidden, ascending, and the tokens after that."""
        starts = None if self.word_starts is None else self.word_starts[tokens]
        chosen = choose(rng, tokens, self.rate, self.most, starts)
        return chosen, replace(rng, tokens, chosen, self.special["mask"], self.ordinary)

    def blank(self, rows: int, seq_len: int) -> dict[str, np.ndarray]:
        """Return the arrays of rows of padding in which nothing is predicted; see `MaskedText.arrays`."""
        shape = (rows, self.most)
        return {
            "tokens": np.full((rows, seq_len), self.special["pad"], np.int32),
            "segments": np.zeros((rows, seq_len), np.int32),
            "masked": np.zeros(shape, np.int32),
            "targets": np.zeros(shape, np.int32),
            "weights": np.zeros(shape, np.float32),
        }


@dataclass(frozen=True, eq=False)
class MaskedText:
    """Rows `[CLS] piece of one document [SEP]`, padded. Which tokens are hidden depends on seed and id alone."""

    spec: str
    windows: Windows
    seq_len: int
    seed: int
    masking: Masking

    @classmethod
    def build(cls, cfg: Config, spec: str, shard: Shard, masking: Masking) -> "MaskedText":
        """Cut a shard into rows."""
        return cls(spec, Windows(shard, cfg.data.seq_len - 2), cfg.data.seq_len, cfg.train.seed, masking)

    @property
    def digest(self) -> str:
        return self.windows.shard.digest

    @property
    def sizes(self) -> dict[str, int]:
        return self.windows.shard.sizes

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, **self.masking.identity}

    def __len__(self) -> int:
        return len(self.windows)

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return `tokens` and `segments` `(B, S)`, and `masked`, `targets` and `weights` `(B, M)`.

        `segments` is 1 where there is a token and 0 for padding; `masked` are the positions to predict, `targets` the
        tokens that stood there; places that a row does not need have weight 0.
        """
        arrays, special = self.masking.blank(len(rows), self.seq_len), self.masking.special
        for b, (row, row_id) in enumerate(zip(rows.tolist(), ids.tolist(), strict=True)):
            piece = self.windows[row].astype(np.int32)
            if not len(piece):
                continue
            chosen, hidden = self.masking.hide(row_generator(self.seed, row_id), piece)
            full = len(piece) + 2
            arrays["tokens"][b, :full] = [special["cls"], *hidden.tolist(), special["sep"]]
            arrays["segments"][b, :full] = 1
            arrays["masked"][b, : len(chosen)] = chosen + 1
            arrays["targets"][b, : len(chosen)] = piece[chosen]
            arrays["weights"][b, : len(chosen)] = 1
        return arrays
