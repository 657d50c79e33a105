"""Answers of a trained model to records without labels: in their order, a bounded number at a time.

Legend: B batch, S sequence.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from math import prod
from typing import Any

import jax
import numpy as np

from bigjax import sharding
from bigjax.config import BATCH_AXES, Config
from bigjax.data import DataError
from bigjax.data.inputs import Record
from bigjax.data.processor import Processor
from bigjax.data.text_data import for_text
from bigjax.errors import UserError, brief
from bigjax.evaluate import writing
from bigjax.evaluate.decoding import bucket
from bigjax.evaluate.likelihood import Scorer, for_any_length
from bigjax.models import Model
from bigjax.sharding import Layout
from bigjax.tasks import named_task
from bigjax.tasks.task import Batch, string

AHEAD = 256
"""Records that are read before the first of them is answered, so that rows of about the same length go together."""


def columns(cfg: Config, processor: Processor) -> tuple[str, ...]:
    """Return the columns that a run with such a tokenizer, or what it has in its place, reads of each record.

    Raises:
      UserError: its task does not say how to answer.
    """
    task = named_task(cfg)
    if task.answers:
        return task.answers.columns(cfg, processor)
    if cfg.model.kind == "encdec" or task.continues_text:
        return (cfg.data.text_key,)
    raise UserError(f"train.objective={cfg.train.objective!r} does not say how it answers: its Task has no `answers`")


def example(cfg: Config) -> dict[str, Any]:
    """Return an answer with the names and types of all; `cfg` names the classes, if there are any."""
    if answers := named_task(cfg).answers:
        return answers.example(cfg)
    return {"prediction": ""} if cfg.model.kind == "encdec" else {"log_prob": 0.0, "tokens": 0}


@dataclass
class Predictor:
    """A trained model that answers records; use it on the mesh of `layout`.

    A record in which a column is missing, empty or blank is answered with nothing. Texts are read as in training; what
    is longer than a row is cut off by a classifier and an encoder-decoder, and otherwise read in several rows.

    Attributes:
      beams, length_penalty: as for `writing.answer`.
      answered, empty, cut: how many records were, had nothing to answer, and were cut off.
    """

    cfg: Config
    model: Model
    weights: Any
    processor: Any
    layout: Layout
    beams: int = 1
    length_penalty: float = 0.0
    answered: int = 0
    empty: int = 0
    cut: int = 0

    def answer(self, records: Iterable[Record]) -> Iterator[list[tuple[Record, dict[str, Any]]]]:
        """Yield all records with their answers, some at a time.

        Raises:
          DataError: naming the record that is not what the task reads.
          UserError: a record has a column that is called as one of the answer.
        """
        names, needed, records = example(self.cfg), columns(self.cfg, self.processor), iter(records)
        while given := list(islice(records, max(AHEAD, self._most))):
            for record in given:
                if taken := [name for name in names if name in record.values]:
                    raise UserError(
                        f"{record.place}: the column {taken[0]!r} is called as one of the answer: rename it"
                    )
            values = [[record.values[name] for name in needed] for record in given]
            full = [number for number, some in enumerate(values) if not any(map(_is_empty, some))]
            found = dict(zip(full, self._answers([(given[i].place, values[i]) for i in full]), strict=True))
            self.answered += len(full)
            self.empty += len(given) - len(full)
            nothing = dict.fromkeys(names)
            yield [(record, nothing | found.get(number, {})) for number, record in enumerate(given)]

    def notes(self) -> list[str]:
        """Return what is to be said of the records so far."""
        said = []
        if self.empty:
            said.append(f"{self.empty} of {self.answered + self.empty} records are empty: their answers are, too")
        if self.cut:
            length = self.cfg.data.seq_len
            said.append(f"{self.cut} of {self.answered} records are longer than data.seq_len={length}: cut off there")
        return said

    @property
    def _most(self) -> int:
        """How many rows are computed at a time, as many as training computes."""
        return max(self.cfg.train.global_batch_size // self.cfg.train.num_microbatches, 1)

    def _answers(self, given: list[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        if named_task(self.cfg).answers:
            return self._of_rows(given)
        texts = []
        for place, values in given:
            try:
                texts.append(string(values[0], self.cfg.data.text_key))
            except DataError as error:
                raise DataError(f"{place}: {error}") from None
        if not texts:
            return []
        read = for_text(self.cfg, self.processor)
        lengths = [len(ids) for ids in read.encode_batch(texts)]
        if self.cfg.model.kind != "encdec":
            scorer = Scorer(self.cfg, self.model, self.weights, self.processor, self.layout)
            scored = zip(scorer.rolling(texts), lengths, strict=True)
            return [{"log_prob": log_prob, "tokens": tokens} for log_prob, tokens in scored]
        self.cut += sum(length > self.cfg.data.seq_len - 1 for length in lengths)
        order = sorted(range(len(texts)), key=lambda i: lengths[i])
        how = {"beams": self.beams, "length_penalty": self.length_penalty, "layout": self.layout}
        written = writing.answer(self.cfg, self.model, self.weights, read, [texts[i] for i in order], **how)
        by_number = dict(zip(order, written, strict=True))
        return [{"prediction": by_number[i]} for i in range(len(texts))]

    @cached_property
    def _ask(self) -> Callable[..., Any]:
        answers = named_task(self.cfg).answers
        assert answers is not None
        return answers.ask(self.cfg, for_text(self.cfg, self.processor))

    def _of_rows(self, given: list[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        """Answer by the predictions for rows, those of about the same length together."""
        asked = []
        for place, values in given:
            try:
                asked.append(self._ask(*values))
            except DataError as error:
                raise DataError(f"{place}: {error}") from None
        self.cut += sum(one.cut for one in asked)
        rows = [row for one in asked for row in one.rows]
        order = sorted(range(len(rows)), key=lambda i: self._length(rows[i]))
        predicted: dict[int, np.ndarray] = {}
        for first in range(0, len(order), self._most):
            chosen = order[first : first + self._most]
            predicted |= zip(chosen, self._predict([rows[i] for i in chosen]), strict=False)
        numbers = iter(range(len(rows)))
        return [one.answer([predicted[next(numbers)] for _ in one.rows]) for one in asked]

    def _length(self, row: Batch) -> int:
        answers = named_task(self.cfg).answers
        assert answers is not None
        return max((len(row[name]) for name in answers.padded), default=0)

    def _predict(self, rows: Sequence[Batch]) -> np.ndarray:
        """Return the predictions for some rows, and for the padding after them up to a batch of few possible shapes."""
        answers = named_task(self.cfg).answers
        assert answers is not None
        ways = prod(self.layout.sizes.get(axis, 1) for axis in BATCH_AXES)
        B = -(-min(1 << (len(rows) - 1).bit_length(), self._most) // ways) * ways
        S = min(bucket(max(map(self._length, rows))), self.cfg.data.seq_len)
        if S % prod(self.layout.sizes[axis] for axis in self.layout.over("residual_seq")):
            S = self.cfg.data.seq_len  # which the mesh divides
        batch = {}
        for name, first in rows[0].items():
            length = (S,) if name in answers.padded else first.shape[:1]
            batch[name] = np.zeros((B, *length, *first.shape[1:]), first.dtype)
            for b, row in enumerate(rows):
                batch[name][b, : len(row[name])] = row[name]
        mesh = jax.sharding.get_mesh()
        mine = sharding.local_rows(mesh, B)
        placed = sharding.put_batch({name: array[mine] for name, array in batch.items()}, mesh, B)
        return np.asarray(self._program(self.weights, placed))

    @cached_property
    def _program(self) -> Callable[..., jax.Array]:
        predict, layout = named_task(self.cfg).predict, self.layout
        assert predict is not None
        model = replace(self.model, cfg=for_any_length(self.model.cfg))

        @jax.jit
        def everywhere(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
            predicted = predict(model, params, batch, layout=layout)
            return jax.reshard(predicted, jax.P()) if layout.sizes else predicted

        return everywhere


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def check_options(cfg: Config, **options: Any) -> None:
    """Raise UserError for options of writing, each by its name and given or not, where nothing is written."""
    for name, given in options.items():
        if given and (named_task(cfg).answers or cfg.model.kind != "encdec"):
            raise UserError(
                f"--{name} is for what an encoder-decoder writes, not train.objective={brief(cfg.train.objective)}"
            )
