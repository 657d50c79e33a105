"""Predicting the class of each word of sentences (encoders; Devlin et al. 2019, section 5.3)."""

import itertools
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, ends_of_rows, strings_tokenizer
from bigjax.data.errors import DataError
from bigjax.data.rows import example as examples
from bigjax.data.rows.labelled import classes_of, names_of_classes
from bigjax.data.rows.tagged import IGNORED, TaggedText, first_tokens, read_tagged, row_ends
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.reports import classification, entities
from bigjax.tasks.task import Answers, Asked, Batch, Report, Task, encoder_problems, string, text_column, tokens_alone


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Make a row of each sentence, with the number of the class of each word."""
    del root
    special = ends_of_rows(cfg, tokenizer)
    classes = classes_of(cfg, (tag for side in training for _, tags in read_tagged(side) for tag in tags))
    return lambda side: TaggedText.build(cfg, side, tokenizer, classes, special)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return rows of one random sentence each, of words of random classes."""
    shard, classes = examples.shard(cfg, rng, cfg.data.seq_len - 2), tuple(map(str, range(cfg.model.num_classes)))
    labels = rng.integers(0, len(classes), len(shard.tokens), dtype=np.int32)
    labels[rng.random(len(labels)) < 0.3] = IGNORED
    labels[shard.offsets[:-1]] = 0  # a row starts with a word
    tokens, special = shard.tokens.astype(np.int32), examples.SPECIAL
    rows = TaggedText("random", cfg.data.seq_len, classes, tokens, labels, shard.offsets, (), 0, special)
    return examples.batch(cfg, rows)


def report(logits_NC: np.ndarray, true_N: np.ndarray, held_out: Any) -> Report:
    """Return `classification` of words and, where tags are BIO, `entities`; of all the sentences that were scored."""
    classes, words = held_out.sources[0].classes, [count for source in held_out.sources for count in source.words]
    probs_NC = classification.softmax(logits_NC)
    measured: dict[str, Any] = {"classification": classification.report(probs_NC, true_N, classes)}
    said = classification.table(measured["classification"])
    if entities.is_bio(classes):
        tags = (entities.sentences(labels, classes, words) for labels in (logits_NC.argmax(axis=-1), true_N))
        measured["entities"] = entities.report(*tags)
        said = f"{said}\n\n{entities.table(measured['entities'])}"
    return measured, said


WORD = re.compile(r"\w(?:\S*\w)?|[^\w\s]")
"""A word of a text that nobody cut into words: what stands between spaces, and each sign at its ends by itself."""


def ask(cfg: Config, tokenizer: Tokenizer) -> Callable[..., Asked]:
    """Make rows of a sentence, cut where words start as in training; the answer has a tag for each word.

    A sentence is a list of words, or a text that is cut into them. Places of entities are characters of the text, or
    of the words joined by spaces.
    """
    special, classes, room = ends_of_rows(cfg, tokenizer), names_of_classes(cfg), cfg.data.seq_len - 2

    def asked(sentence: Any) -> Asked:
        words, text, starts = _words(sentence, cfg.data.text_key)
        ((ids, spans),) = tokenizer.encode_spans([" ".join(words)])
        places = list(first_tokens(words, spans))
        predicted = np.full(len(ids), IGNORED)
        predicted[[place for place in places if place is not None]] = 0
        bounds = [0, *row_ends(predicted != IGNORED, room)]
        pieces = [ids[start:stop].tolist() for start, stop in pairwise(bounds)]

        def answer(logits: Sequence[np.ndarray]) -> dict[str, Any]:
            kept = [row_SC[1 : 1 + len(piece)] for row_SC, piece in zip(logits, pieces, strict=True)]
            logits_NC = np.concatenate([np.zeros((0, len(classes))), *kept])  # no row where words have no token at all
            probs_NC = classification.softmax(logits_NC)
            best = [None if place is None else int(probs_NC[place].argmax()) for place in places]
            tags = [None if number is None else classes[number] for number in best]
            probs = [
                None if i is None or k is None else float(probs_NC[i, k]) for i, k in zip(places, best, strict=True)
            ]
            found = {"words": words, "prediction": tags, "probabilities": probs}
            if not entities.is_bio(classes):
                return found
            kinds = entities.entities([tag or "O" for tag in tags])
            ends = [start + len(word) for start, word in zip(starts, words, strict=True)]
            spelt = [(kind, starts[first], ends[after - 1]) for kind, first, after in kinds]
            return found | {"entities": [{"kind": k, "text": text[i:j], "start": i, "end": j} for k, i, j in spelt]}

        return Asked([tokens_alone([special["cls"], *piece, special["sep"]]) for piece in pieces], answer)

    return asked


def _words(sentence: Any, column: str) -> tuple[list[str], str, list[int]]:
    """Return the words of a sentence, its text, and where in that each word starts."""
    if not isinstance(sentence, list):
        text = string(sentence, column)
        found = list(WORD.finditer(text))
        return [one.group() for one in found], text, [one.start() for one in found]
    if not all(isinstance(word, str) and word for word in sentence):
        raise DataError(f"{column!r} is not a text, nor a list of words of which none is empty")
    words = [string(word, column) for word in sentence]
    return words, " ".join(words), [0, *itertools.accumulate(len(word) + 1 for word in words)][:-1]


def answer_like(cfg: Config) -> dict[str, Any]:
    """Return what an answer is like."""
    like: dict[str, Any] = {"words": [""], "prediction": [""], "probabilities": [0.0]}
    if entities.is_bio(names_of_classes(cfg)):
        like["entities"] = [{"kind": "", "text": "", "start": 0, "end": 0}]
    return like


TASK = Task(
    families=("encoder",),
    head="token_classification",
    columns=lambda cfg: (cfg.data.text_key, cfg.data.label_key),
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.encoders:classification"),
    processor=strings_tokenizer,
    metrics=("loss", "nll", "accuracy"),
    cross_entropy=True,
    predict=lazy.function("bigjax.tasks.encoders:class_logits"),
    report=report,
    answers=Answers(text_column, ask, answer_like),
    problems=encoder_problems,
    whole=True,
)
