"""What `experiments.evaluate` reports of an objective beyond its loss, from the predictions on all rows of a split."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bigjax import sharding
from bigjax.config import Config
from bigjax.data import EvalSet
from bigjax.evaluate import classification, entities, question_answering
from bigjax.models import Model
from bigjax.sharding import Layout
from bigjax.tasks import encoders as objectives_encoder

Report = Callable[..., tuple[dict[str, Any], str]]


def measure(
    cfg: Config, model: Model, weights: Any, texts: EvalSet, layout: Layout, limit: int = 0, **options: Any
) -> tuple[dict[str, Any], str]:
    """Return what is measured on a split, or its first `limit` batches, as JSON-able values and as text to read.

    `options` are those of the objective's report below.

    Every process must call this; all get the same. Empty for an objective that has no report.
    """
    if cfg.train.objective not in REPORTS:
        return {}, ""
    logits_of, report = REPORTS[cfg.train.objective]
    batch_size, mesh = cfg.train.global_batch_size, jax.sharding.get_mesh()

    @jax.jit
    def everywhere(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits = logits_of(model, params, batch, layout=layout)
        return jax.reshard(logits, jax.P()) if layout.sizes else logits

    found, true = [], []
    for batch in texts.batches(limit):
        arrays = sharding.put_batch(batch.arrays, mesh, batch_size)
        targets, weighted = (np.asarray(jax.reshard(arrays[name], jax.P())) for name in ("targets", "weights"))
        found.append(np.asarray(everywhere(weights, arrays))[weighted > 0])
        true.append(targets[weighted > 0])
    return report(np.concatenate(found), np.concatenate(true), texts, **options)


def _classes(logits_NC: np.ndarray, true_N: np.ndarray, texts: EvalSet) -> tuple[dict[str, Any], str]:
    sources: Any = texts.sources
    measured = classification.report(_softmax(logits_NC), true_N, sources[0].classes)
    return {"classification": measured}, classification.table(measured)


def _tags(logits_NC: np.ndarray, true_N: np.ndarray, texts: EvalSet) -> tuple[dict[str, Any], str]:
    """`classification` of words and, where tags are BIO, `entities`; of all the sentences that were scored."""
    measured, said = _classes(logits_NC, true_N, texts)
    sources: Any = texts.sources
    classes, words = sources[0].classes, [count for source in sources for count in source.words]
    if entities.is_bio(classes):
        tags = (entities.sentences(labels, classes, words) for labels in (logits_NC.argmax(axis=-1), true_N))
        measured["entities"] = entities.report(*tags)
        said = f"{said}\n\n{entities.table(measured['entities'])}"
    return measured, said


def _answers(
    logits_NS: np.ndarray, true_N: np.ndarray, texts: EvalSet, no_answer_threshold: float | None = None
) -> tuple[dict[str, Any], str]:
    """`exact_match` and `f1` over the questions of which a row was scored.

    Args:
      no_answer_threshold: above it, the doubt of an answer makes it empty. None is 0 where a question has no answer,
        and otherwise gives an answer to all.
    """
    del true_N
    logits_N2S, examples = logits_NS.reshape(-1, 2, logits_NS.shape[-1]), []
    found: list[question_answering.Found] = []
    sources: Any = texts.sources
    for source in sources:
        answered = question_answering.answers(logits_N2S[: len(source)], source)
        logits_N2S = logits_N2S[len(source) :]
        found += answered.values()
        examples += [source.examples[number] for number in answered]
    right = [one.answers for one in examples]
    some_without = not all(right)
    threshold = (0.0 if some_without else np.inf) if no_answer_threshold is None else no_answer_threshold
    written = question_answering.said(found, threshold)
    measured = question_answering.report(written, right)
    if some_without:
        measured |= question_answering.best_thresholds(found, right)
    return measured, question_answering.peek(written, right, [one.question for one in examples])


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


REPORTS: dict[str, tuple[Callable[..., jax.Array], Report]] = {
    "classification": (objectives_encoder.class_logits, _classes),
    "token_classification": (objectives_encoder.class_logits, _tags),
    "question_answering": (objectives_encoder.span_logits, _answers),
}
"""Objective -> its logits, one for every weight of a batch, and what is reported of them."""
