"""Rows for writing what was taken out of a text: hidden spans, or all after a prefix (Raffel et al. 2020, section 3).

Which spans, or where the prefix ends, depends on seed and row id alone, so that it is drawn afresh in every epoch.
Legend: B batch, S sequence that is read, T sequence that is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.rows.masking import row_generator
from bigjax.data.rows.pairs import Ends, rows_of, without_end
from bigjax.data.rows.windows import Windows
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.special import SENTINELS

Split = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From the tokens of a text to what is read and what is to be written."""


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Return how many of `length` tokens are hidden, and in how many spans: at least one, and not all."""
    hidden = min(max(round(length * rate), 1), length - 1)
    return hidden, min(max(round(hidden / mean_span), 1), hidden, length - hidden)


def random_spans(rng: np.random.Generator, length: int, rate: float, mean_span: float) -> np.ndarray:
    """Return which of `length` tokens are hidden, `(length,)` bool: spans in turn, a visible one first.

    All ways to cut the hidden tokens into that many spans are equally likely, and so for the visible ones
    (`random_spans_noise_mask` of the paper's code).
    """
    hidden, spans = span_counts(length, rate, mean_span)
    lengths = np.stack([_partition(rng, length - hidden, spans), _partition(rng, hidden, spans)], axis=1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.ravel())


def _partition(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """Return `parts` random numbers of at least 1 that sum to `total`."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(tokens: np.ndarray, hidden: np.ndarray, sentinels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return `tokens` with a sentinel for each hidden span, and the hidden spans with one for each visible span.

    The k-th of either has the k-th sentinel, so a hidden span is written after the sentinel that it was read as
    (section 3.1.4 and figure 2), if the first span is visible.
    """
    return _replace_spans(tokens, hidden, sentinels), _replace_spans(tokens, ~hidden, sentinels)


def _replace_spans(tokens: np.ndarray, replaced: np.ndarray, sentinels: list[int]) -> np.ndarray:
    starts = replaced & ~np.concatenate([[False], replaced[:-1]])
    number = np.cumsum(starts) - 1
    marked = np.where(starts, np.asarray(sentinels)[np.maximum(number, 0)], tokens)
    return marked[~replaced | starts]


def text_length(seq_len: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Return the length of text that fills rows of `seq_len` once corrupted, and the length of what is then written.

    Both rows include their end (`compute_input_and_target_lengths` of the paper's code).
    """

    def lengths(text: int) -> tuple[int, int]:
        hidden, spans = span_counts(text, rate, mean_span)
        return text - hidden + spans + 1, hidden + spans + 1

    text = 2
    while lengths(text + 1)[0] <= seq_len:
        text += 1
    return text, lengths(text)[1]


@dataclass(frozen=True, eq=False)
class CutText:
    """Rows of pieces of documents, each cut in two by `split`.

    Attributes:
      how: what the split depends on besides seed and id, JSON-able.
    """

    spec: str
    windows: Windows
    seq_len: int
    target_len: int
    seed: int
    ends: Ends
    eos_id: int | None
    split: Split
    how: dict[str, Any]

    @property
    def digest(self) -> str:
        return self.windows.shard.digest

    @property
    def sizes(self) -> dict[str, int]:
        return self.windows.shard.sizes

    @property
    def identity(self) -> dict[str, Any]:
        lengths = {"seq_len": self.seq_len, "target_len": self.target_len}
        return lengths | {"special": vars(self.ends)} | self.how

    def __len__(self) -> int:
        return len(self.windows)

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of `pairs.rows_of`; a piece of one token, which cannot be cut, has weight 0."""
        parts = [self._parts(row, row_id) for row, row_id in zip(rows.tolist(), ids.tolist(), strict=True)]
        read, written = map(list, zip(*parts, strict=True))
        return rows_of(read, written, self.seq_len, self.target_len, self.ends)

    def _parts(self, row: int, row_id: int) -> tuple[np.ndarray, np.ndarray]:
        piece = without_end(self.windows[row].astype(np.int32), self.eos_id)
        return self.split(row_generator(self.seed, row_id), piece) if len(piece) > 1 else (piece[:0], piece[:0])


def corrupted(cfg: Config, spec: str, shard: Shard, ends: Ends, eos_id: int | None, sentinels: list[int]) -> CutText:
    """Return rows of corrupted spans.

    Raises:
      DataError: `data.target_len` has no room for what is written, or there are more spans than sentinels.
    """
    data = cfg.data
    length, written = text_length(data.seq_len, data.mask_rate, data.mean_span)
    if written > data.target_len:
        raise DataError(
            f"data.target_len={data.target_len} has no room for the {written} tokens that are written for "
            f"data.seq_len={data.seq_len}, data.mask_rate={data.mask_rate} and data.mean_span={data.mean_span}: set "
            f"data.target_len={written} or more"
        )
    _, spans = span_counts(length, data.mask_rate, data.mean_span)
    if spans > SENTINELS:
        raise DataError(
            f"data.seq_len={data.seq_len} has {spans} spans of data.mean_span={data.mean_span}, but there are "
            f"{SENTINELS} sentinels: shorten the rows or lengthen the spans"
        )

    def split(rng: np.random.Generator, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return corrupt(tokens, random_spans(rng, len(tokens), data.mask_rate, data.mean_span), sentinels)

    how = {"mask_rate": data.mask_rate, "mean_span": data.mean_span, "sentinels": sentinels}
    windows = Windows(shard, length)
    return CutText(spec, windows, data.seq_len, data.target_len, cfg.train.seed, ends, eos_id, split, how)


def prefixed(cfg: Config, spec: str, shard: Shard, ends: Ends, eos_id: int | None) -> CutText:
    """Return rows of a prefix and what follows it, cut anywhere with equal probability (section 3.2.3)."""
    data = cfg.data

    def split(rng: np.random.Generator, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = int(rng.integers(1, len(tokens)))
        return tokens[:first], tokens[first:]

    # Either part may be all but one token of the text, and has an end.
    windows = Windows(shard, min(data.seq_len, data.target_len))
    return CutText(spec, windows, data.seq_len, data.target_len, cfg.train.seed, ends, eos_id, split, {})
