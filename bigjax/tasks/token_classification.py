"""Predicting the class of each word of sentences (encoders; Devlin et al. 2019, section 5.3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, ends_of_rows, strings_tokenizer
from bigjax.data.rows import example as examples
from bigjax.data.rows.labelled import classes_of
from bigjax.data.rows.tagged import IGNORED, TaggedText, read_tagged
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.reports import classification, entities
from bigjax.tasks.task import Batch, Report, Task, encoder_problems


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
    problems=encoder_problems,
    whole=True,
)
