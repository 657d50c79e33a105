"""Rows for question answering: a question and a piece of the text in which its answer stands (Rajpurkar et al. 2016).

Legend: B batch, S sequence.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class Example:
    """A question, the text that answers it, and the answers, of which the first is trained on.

    Attributes:
      answers: none where the text does not answer the question (Rajpurkar et al. 2018, SQuAD 2.0). starts: where each
        starts in the context, in characters.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


def read_examples(side: SplitSource) -> Iterator[Example]:
    """Yield the examples of a side; answer and start are a string and a number, or a list of each, which may be empty.

    A record with a true `is_impossible` has no answer, whatever plausible one it names (Rajpurkar et al. 2018).

    Raises:
      DataError: a value is of another kind, an answer does not stand where it should, or there is none where
        `is_impossible` says that there is.
    """
    for name, record in side.documents():
        context, question, answers, starts, *said = record
        place = f"{side.source.spec!r}, {name}"
        impossible = _truth(said[0], place) if said else None
        if impossible:
            answers, starts = [], []
        elif isinstance(answers, str):
            answers, starts = [answers], [starts]
        if not isinstance(context, str) or not isinstance(question, str):
            raise DataError(f"{place}: context and question must be strings")
        if not context.strip():
            raise DataError(f"{place}: the context is empty")
        if not _is_list(answers, str) or not _is_list(starts, int) or len(answers) != len(starts):
            raise DataError(f"{place}: an answer is a string and where it starts a number, or both are lists as long")
        if impossible is False and not answers:
            raise DataError(f"{place}: there is no answer, but 'is_impossible' is {said[0]!r}")
        for answer, start in zip(answers, starts, strict=True):
            if not answer.strip() or start < 0 or context[start : start + len(answer)] != answer:
                raise DataError(f"{place}: the answer {answer!r} does not stand at character {start} of the context")
        yield Example(context, question, tuple(answers), tuple(starts))


def _truth(value: Any, place: str) -> bool:
    for truth, spellings in ((True, (1, "true")), (False, (0, "false"))):
        if value in spellings:  # 1 is true to Python
            return truth
    raise DataError(f"{place}: 'is_impossible' is {value!r}, neither true nor false")


def _is_list(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


@dataclass(frozen=True, eq=False)
class AnswerSpans:
    """Rows `[CLS] question [SEP] piece of the context [SEP]`, padded, and where in them the answer starts and ends.

    A question takes at most half of a row and is cut off there; pieces start every `stride` tokens, until one ends with
    the context. Where a piece does not hold the whole answer, or there is none, both ends are `[CLS]` (Devlin et al.
    2019, section 4.3 and run_squad.py).

    Attributes:
      examples: what is asked. questions, contexts: their tokens. spans: (n, 2) of each context, the characters that its
        tokens stand for. ends: (examples, 2) the first and last token of the answer in the context, -1 where there is
        none.
      pieces: (rows, 3) the example of each row, and where in the context's tokens its piece starts and ends.
    """

    spec: str
    seq_len: int
    stride: int
    examples: tuple[Example, ...]
    questions: tuple[np.ndarray, ...]
    contexts: tuple[np.ndarray, ...]
    spans: tuple[np.ndarray, ...]
    ends: np.ndarray
    pieces: np.ndarray
    special: dict[str, int]

    @classmethod
    def build(cls, cfg: Config, side: SplitSource, tokenizer: Tokenizer, special: dict[str, int]) -> "AnswerSpans":
        """Tokenise a side, cut its contexts into pieces and find the tokens of the answers.

        Raises:
          DataError: as `read_examples`; the tokenizer has no token for an answer; there is no example.
        """
        examples = tuple(read_examples(side))
        if not examples:
            raise DataError(f"{side.source.spec!r} has no question for {side.split} (rule {side.rule})")
        return cls.of(cfg, side.source.spec, examples, tokenizer, special)

    @classmethod
    def of(
        cls, cfg: Config, spec: str, examples: tuple[Example, ...], tokenizer: Tokenizer, special: dict[str, int]
    ) -> "AnswerSpans":
        """Tokenise examples, cut their contexts into pieces and find the tokens of the answers.

        Raises:
          DataError: the tokenizer has no token for an answer.
        """
        data = cfg.data
        questions = tuple(
            ids[: longest_question(cfg)] for ids in tokenizer.encode_batch([one.question for one in examples])
        )
        contexts, spans = zip(*tokenizer.encode_spans([one.context for one in examples]), strict=True)
        pieces, ends = [], []
        for number, one in enumerate(examples):
            room = data.seq_len - 3 - len(questions[number])
            pieces += [(number, *piece) for piece in _pieces(len(contexts[number]), room, data.doc_stride)]
            first, last = _ends(one, spans[number])
            if first > last:
                raise DataError(f"{spec!r}: the tokenizer has no token for the answer {one.answers[0]!r}")
            ends.append((first, last))
        found = (np.array(ends), np.array(pieces))
        return cls(spec, data.seq_len, data.doc_stride, examples, questions, contexts, spans, *found, special)

    @property
    def digest(self) -> str:
        found = hashlib.sha256(self.ends.tobytes() + self.pieces.tobytes())
        for tokens in (*self.questions, *self.contexts):
            found.update(tokens.tobytes())
        return found.hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        tokens = sum(map(len, self.questions)) + sum(map(len, self.contexts))
        num_bytes = sum(len(one.context.encode()) + len(one.question.encode()) for one in self.examples)
        return {"documents": len(self.examples), "tokens": tokens, "bytes": num_bytes}

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, "doc_stride": self.stride, "special": self.special}

    def __len__(self) -> int:
        return len(self.pieces)

    def first_place(self, row: int) -> int:
        """Return the position in a row of the first token of its piece."""
        return len(self.questions[self.pieces[row, 0]]) + 2

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return `tokens`, `segments` and `types` `(B, S)`, and `targets` and `weights` `(B, 2)`.

        `types` is 1 for the context and the `[SEP]` after it, else 0; `targets` are the first and last place of the
        answer.
        """
        del ids
        shape, special = (len(rows), self.seq_len), self.special
        tokens_BS, segments_BS = np.full(shape, special["pad"], np.int32), np.zeros(shape, np.int32)
        types_BS = np.zeros(shape, np.int32)
        targets_B2, weights_B2 = np.zeros((len(rows), 2), np.int32), np.zeros((len(rows), 2), np.float32)
        for b, row in enumerate(rows.tolist()):
            if row >= len(self):
                continue
            example, start, stop = self.pieces[row].tolist()
            place, full = self.first_place(row), self.first_place(row) + stop - start + 1
            question, piece = self.questions[example].tolist(), self.contexts[example][start:stop].tolist()
            tokens_BS[b, :full] = [special["cls"], *question, special["sep"], *piece, special["sep"]]
            segments_BS[b, :full] = 1
            types_BS[b, place:full] = 1
            first, last = self.ends[example].tolist()
            if start <= first and last < stop:
                targets_B2[b] = first - start + place, last - start + place
            weights_B2[b] = 1
        return {
            "tokens": tokens_BS,
            "segments": segments_BS,
            "types": types_BS,
            "targets": targets_B2,
            "weights": weights_B2,
        }


def longest_question(cfg: Config) -> int:
    """Return how many tokens of a question are read: half of a row."""
    return (cfg.data.seq_len - 3) // 2


def _ends(one: Example, spans: np.ndarray) -> tuple[int, int]:
    """Return the first and last token of the answer, given the characters that each token stands for."""
    if not one.answers:
        return -1, -1
    stop = one.starts[0] + len(one.answers[0])
    first, after = np.searchsorted(spans[:, 1], one.starts[0], side="right"), np.searchsorted(spans[:, 0], stop)
    return int(first), int(after) - 1


def _pieces(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield where the pieces of a context start and end, `room` tokens each but the last."""
    for start in range(0, max(length - room, 0) + stride, stride):
        yield start, min(start + room, length)
        if start + room >= length:
            return
