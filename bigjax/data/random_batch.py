"""A batch of random content, shaped as in training: for checks and plans, which need no text."""

from pathlib import Path

import numpy as np

from bigjax.config import Config
from bigjax.data.rows.answers import AnswerSpans
from bigjax.data.rows.labelled import LabelledText
from bigjax.data.rows.masking import MaskedText, Masking, num_predictions
from bigjax.data.rows.pairs import Ends, PairedText
from bigjax.data.rows.sentence_pairs import SentencePairs
from bigjax.data.rows.spans import corrupted, prefixed
from bigjax.data.rows.tagged import IGNORED, TaggedText
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.special import SENTINELS

SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}


def random_batch(cfg: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a batch for `train.objective` of `train.global_batch_size` rows, with padding and several documents."""
    return _MAKERS[cfg.train.objective](cfg, np.random.default_rng(seed))


def _packed(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of several documents each, with padding at the end and tokens of weight 0 in between.

    As in training, documents are told apart only where `data.document_mask` is set.
    """
    rows, length = cfg.train.global_batch_size, cfg.data.seq_len
    tokens = rng.integers(0, cfg.model.vocab_size, (rows, length + 1), dtype=np.int32)
    starts = (rng.random((rows, length)) < 4 / length) | (np.arange(length) == 0)
    ends = rng.integers(3 * length // 4, length + 1, rows)
    padding = np.arange(length) >= ends[:, None]
    first = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.where(padding, 0, rng.random((rows, length)) < 0.9).astype(np.float32),
    }
    if cfg.data.document_mask:
        batch["segments"] = np.where(padding, 0, np.cumsum(starts, axis=1)).astype(np.int32)
        batch["positions"] = (np.arange(length) - first).astype(np.int32)
    if cfg.data.order == "contiguous":
        batch["continues"] = (rng.random(rows) < 0.9).astype(np.int32)
    return batch


def _masked(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shard, numbers = _shard(cfg, rng, cfg.data.seq_len - 2), np.arange(cfg.train.global_batch_size)
    return MaskedText.build(cfg, "random", shard, _masking(cfg)).arrays(numbers, numbers)


def _sentence_pairs(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    documents = max(cfg.train.global_batch_size, 2)
    shard = _shard(cfg, rng, cfg.data.seq_len - 3, documents)
    words = rng.random(cfg.model.vocab_size) < 0.5
    numbers = np.arange(cfg.train.global_batch_size)
    return SentencePairs.build(cfg, "random", shard, _masking(cfg), words).arrays(numbers, numbers)


def _masking(cfg: Config) -> Masking:
    ordinary = np.arange(cfg.model.vocab_size, dtype=np.int32)
    return Masking(cfg.data.mask_rate, num_predictions(cfg.data.seq_len, cfg.data.mask_rate), SPECIAL, ordinary, None)


def _labelled(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shard, classes = _shard(cfg, rng, cfg.data.seq_len - 2), tuple(map(str, range(cfg.model.num_classes)))
    labels = rng.integers(0, len(classes), shard.num_documents, dtype=np.int32)
    rows = LabelledText("random", shard, cfg.data.seq_len, classes, labels, SPECIAL)
    numbers = np.arange(cfg.train.global_batch_size)
    return rows.arrays(numbers, numbers)


def _tagged(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shard, classes = _shard(cfg, rng, cfg.data.seq_len - 2), tuple(map(str, range(cfg.model.num_classes)))
    labels = rng.integers(0, len(classes), len(shard.tokens), dtype=np.int32)
    labels[rng.random(len(labels)) < 0.3] = IGNORED
    labels[shard.offsets[:-1]] = 0  # a row starts with a word
    tokens = shard.tokens.astype(np.int32)
    rows = TaggedText("random", cfg.data.seq_len, classes, tokens, labels, shard.offsets, (), 0, SPECIAL)
    numbers = np.arange(cfg.train.global_batch_size)
    return rows.arrays(numbers, numbers)


def _answered(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    longest = (cfg.data.seq_len - 3) // 2
    asked, read = (_shard(cfg, rng, length) for length in (longest, cfg.data.seq_len - 3 - longest))
    questions, contexts = (np.split(shard.tokens.astype(np.int32), shard.offsets[1:-1]) for shard in (asked, read))
    ends = np.array([np.sort(rng.integers(0, len(context), 2)) for context in contexts])
    pieces = np.array([(number, 0, len(context)) for number, context in enumerate(contexts)])
    texts = (tuple(questions), tuple(contexts), ())
    rows = AnswerSpans("random", cfg.data.seq_len, cfg.data.doc_stride, (), *texts, ends, pieces, SPECIAL)
    numbers = np.arange(cfg.train.global_batch_size)
    return rows.arrays(numbers, numbers)


def _paired(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    source, target = (_shard(cfg, rng, length - 1) for length in (cfg.data.seq_len, cfg.data.target_len))
    rows = PairedText("random", source, target, cfg.data.seq_len, cfg.data.target_len, Ends(0, 1, 0), None)
    numbers = np.arange(cfg.train.global_batch_size)
    return rows.arrays(numbers, numbers)


def _corrupted(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sentinels = [cfg.model.vocab_size - 1 - number % (cfg.model.vocab_size // 2) for number in range(SENTINELS)]
    rows = corrupted(cfg, "random", _shard(cfg, rng, cfg.data.seq_len), Ends(0, 1, 0), None, sentinels)
    numbers = np.arange(cfg.train.global_batch_size)
    return rows.arrays(numbers, numbers)


def _prefixed(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shard = _shard(cfg, rng, min(cfg.data.seq_len, cfg.data.target_len))
    numbers = np.arange(cfg.train.global_batch_size)
    return prefixed(cfg, "random", shard, Ends(0, 1, 0), None).arrays(numbers, numbers)


def _shard(cfg: Config, rng: np.random.Generator, full: int, documents: int = 0) -> Shard:
    """One document a row, or as many as given, of half to all of the length `full`."""
    lengths = rng.integers(max(full // 2, 1), full + 1, documents or cfg.train.global_batch_size)
    tokens = rng.integers(0, cfg.model.vocab_size, int(lengths.sum()), dtype=np.uint32)
    return Shard(Path(), tokens, np.concatenate([[0], np.cumsum(lengths)]), tokens.size, "random")


_MAKERS = {
    "causal_lm": _packed,
    "masked_lm": _masked,
    "masked_lm_next_sentence": _sentence_pairs,
    "classification": _labelled,
    "token_classification": _tagged,
    "question_answering": _answered,
    "seq2seq": _paired,
    "span_corruption": _corrupted,
    "prefix_lm": _prefixed,
}
