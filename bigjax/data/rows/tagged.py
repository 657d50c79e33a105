"""Rows for token classification: sentences of words, each with the name of its class.

Legend: B batch, S sequence.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.rows.labelled import numbers_of
from bigjax.data.sources.opening import SplitSource
from bigjax.data.sources.readers import spelled
from bigjax.data.tokens.tokenizers import Tokenizer

IGNORED = -1
"""The label of a token that is not the first of a word."""


def read_tagged(side: SplitSource) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the words and the tags of each sentence of a side.

    Raises:
      DataError: they are not lists of strings that are not empty, of tags also whole numbers or truth values; or not
        as many of each.
    """
    for name, record in side.documents():
        words, tags = record
        tags = [*map(spelled, tags)] if isinstance(tags, list) else tags
        for what, values in (("words", words), ("tags", tags)):
            if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
                raise DataError(
                    f"{side.source.spec!r}, {name}: the {what} are not a list of strings, none of them empty"
                )
        if len(words) != len(tags):
            raise DataError(f"{side.source.spec!r}, {name}: {len(words)} words have {len(tags)} tags")
        yield words, tags


@dataclass(frozen=True, eq=False)
class TaggedText:
    """Rows `[CLS] words [SEP]`, padded. A word is predicted at its first token (Devlin et al. 2019, section 5.3).

    A sentence that is too long is cut where words start, into rows of its own.

    Attributes:
      classes: their names; a label is an index into them. tokens, labels: (tokens,) int32 of all sentences, `IGNORED`
        where nothing is predicted. bounds: (rows + 1,) where rows start in them. words: how many words of each sentence
        are predicted: all that the tokenizer gives a token. num_bytes: UTF-8 bytes of the sentences.
    """

    spec: str
    seq_len: int
    classes: tuple[str, ...]
    tokens: np.ndarray
    labels: np.ndarray
    bounds: np.ndarray
    words: tuple[int, ...]
    num_bytes: int
    special: dict[str, int]

    @classmethod
    def build(
        cls, cfg: Config, side: SplitSource, tokenizer: Tokenizer, classes: tuple[str, ...], special: dict[str, int]
    ) -> "TaggedText":
        """Tokenise a side and lay the labels of its words on the tokens.

        Raises:
          DataError: a record is no sentence with tags; a label is not among the classes, or one that is trained on has
            no word; there is nothing to predict.
        """
        read = list(read_tagged(side))
        numbers = iter(numbers_of(side, [tag for _, tags in read for tag in tags], classes, "word").tolist())
        texts = [" ".join(words) for words, _ in read]
        tokens, labels, bounds, counts = [], [], [0], []
        for (words, _), (ids, spans) in zip(read, tokenizer.encode_spans(texts), strict=True):
            laid = np.full(len(ids), IGNORED, np.int32)
            for place, number in zip(first_tokens(words, spans), numbers, strict=False):
                if place is not None:
                    laid[place] = number
            tokens.append(ids)
            labels.append(laid)
            bounds += [bounds[-1] + stop for stop in row_ends(laid != IGNORED, cfg.data.seq_len - 2)]
            counts.append(int(np.count_nonzero(laid != IGNORED)))
        if not sum(counts):
            raise DataError(f"{side.source.spec!r} has no word to predict for {side.split} (rule {side.rule})")
        arrays = np.concatenate(tokens), np.concatenate(labels), np.array(bounds)
        num_bytes = sum(len(text.encode()) for text in texts)
        return cls(side.source.spec, cfg.data.seq_len, classes, *arrays, tuple(counts), num_bytes, special)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.tokens.tobytes() + self.labels.tobytes() + self.bounds.tobytes()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        return {"documents": len(self.words), "tokens": len(self.tokens), "bytes": self.num_bytes}

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, "classes": list(self.classes), "special": self.special}

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return `tokens`, `segments`, `targets` and `weights` `(B, S)`, the last 1 where a word is predicted."""
        del ids
        shape = (len(rows), self.seq_len)
        tokens_BS, segments_BS = np.full(shape, self.special["pad"], np.int32), np.zeros(shape, np.int32)
        labels_BS = np.full(shape, IGNORED, np.int32)
        for b, row in enumerate(rows.tolist()):
            if row >= len(self):
                continue
            start, stop = self.bounds[row : row + 2].tolist()
            full = stop - start + 2
            tokens_BS[b, :full] = [self.special["cls"], *self.tokens[start:stop].tolist(), self.special["sep"]]
            segments_BS[b, :full] = 1
            labels_BS[b, 1 : full - 1] = self.labels[start:stop]
        weights_BS = (labels_BS != IGNORED).astype(np.float32)
        return {
            "tokens": tokens_BS,
            "segments": segments_BS,
            "targets": np.maximum(labels_BS, 0),
            "weights": weights_BS,
        }


def first_tokens(words: list[str], spans: np.ndarray) -> Iterator[int | None]:
    """Yield the number of the first token of each of some words, None for one that has none.

    Args:
      spans: (n, 2) which characters of the words, joined by spaces, each token stands for.
    """
    start = 0
    for word in words:
        place = int(np.searchsorted(spans[:, 1], start, side="right"))
        yield place if place < len(spans) and spans[place, 0] < start + len(word) else None
        start += len(word) + 1


def row_ends(starts: np.ndarray, room: int) -> list[int]:
    """Return the ends of the rows of a sentence, each of at most `room` tokens and up to a start of a word."""
    ends, begin = [], 0
    while len(starts) - begin > room:
        inside = np.flatnonzero(starts[begin + 1 : begin + room + 1])
        begin += int(inside[-1]) + 1 if len(inside) else room
        ends.append(begin)
    return [*ends, len(starts)] if len(starts) else []
