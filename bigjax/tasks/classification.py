"""Predicting the class of texts (encoders; Devlin et al. 2019, section 4.1)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, ends_of_rows, shard_of
from bigjax.data.rows import example as examples
from bigjax.data.rows.labelled import LabelledText, classes_of, names_of_classes, read_labels
from bigjax.data.rows.packed import Rows
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.reports import classification
from bigjax.tasks.task import Answers, Asked, Batch, Report, Task, encoder_problems, string, text_column, tokens_alone


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Make a row of each text, with the number of its class."""
    special = ends_of_rows(cfg, tokenizer)
    classes = classes_of(cfg, (label for side in training for label in read_labels(cfg, side)))

    def cut(side: SplitSource) -> Rows:
        return LabelledText.build(cfg, side, shard_of(side, tokenizer, root), classes, special)

    return cut


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return rows of one random document each, of random classes."""
    shard, classes = examples.shard(cfg, rng, cfg.data.seq_len - 2), tuple(map(str, range(cfg.model.num_classes)))
    labels = rng.integers(0, len(classes), shard.num_documents, dtype=np.int32)
    return examples.batch(cfg, LabelledText("random", shard, cfg.data.seq_len, classes, labels, examples.SPECIAL))


def report(logits_NC: np.ndarray, true_N: np.ndarray, held_out: Any) -> Report:
    """Return `classification`: accuracy, and precision, recall and F1 of every class."""
    measured = classification.report(classification.softmax(logits_NC), true_N, held_out.sources[0].classes)
    return {"classification": measured}, classification.table(measured)


def ask(cfg: Config, tokenizer: Tokenizer) -> Callable[..., Asked]:
    """Make a row of a text, cut off at `data.seq_len` as in training; the answer is its likeliest class."""
    special, classes, room = ends_of_rows(cfg, tokenizer), names_of_classes(cfg), cfg.data.seq_len - 2

    def asked(text: Any) -> Asked:
        ids = tokenizer.encode(string(text, cfg.data.text_key))
        row = [special["cls"], *ids[:room].tolist(), special["sep"]]

        def answer(logits: Sequence[np.ndarray]) -> dict[str, Any]:
            probs_C = classification.softmax(logits[0].astype(np.float64))
            best = int(probs_C.argmax())
            return {
                "prediction": classes[best],
                "probability": float(probs_C[best]),
                "probabilities": dict(zip(classes, probs_C.tolist(), strict=True)),
            }

        return Asked([tokens_alone(row)], answer, cut=len(ids) > room)

    return asked


def answer_like(cfg: Config) -> dict[str, Any]:
    """Return what an answer is like."""
    return {"prediction": "", "probability": 0.0, "probabilities": dict.fromkeys(names_of_classes(cfg), 0.0)}


TASK = Task(
    families=("encoder",),
    head="classification",
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.encoders:classification"),
    metrics=("loss", "nll", "accuracy"),
    cross_entropy=True,
    predict=lazy.function("bigjax.tasks.encoders:class_logits"),
    report=report,
    answers=Answers(text_column, ask, answer_like),
    head_positions=lambda cfg: 1,
    problems=encoder_problems,
    whole=True,
)
