"""A sample of texts by quality, as that of GPT-3 (Brown et al. 2020, appendix A).

A linear classifier learns to tell words of good texts from those of the records; a record of score s is kept if a
number of the Pareto distribution is above 1 - s. So most of the good ones are kept, and a few of the others.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bigjax.config.fields import bounded
from bigjax.errors import ConfigError
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.reading import texts
from bigjax.prepare.step import Arrays, Dropped, Fitted, Record, text_of
from bigjax.prepare.words import ngrams, words


@dataclass(frozen=True)
class QualitySample:
    """What is good, and how much of the rest is kept."""

    good: tuple[str, ...] = ()
    """Files of good texts, as JSON lines or, for names that end with .txt, a text each."""
    columns: tuple[str, ...] = ("text",)
    """The columns of JSON lines that hold the good texts."""
    alpha: float = bounded(9.0, above=0)
    """The shape of the Pareto distribution: the larger, the fewer of the others are kept."""
    features: int = bounded(2**16, minimum=2)
    """Features that words are hashed to."""
    sample: int = bounded(10_000, minimum=1)
    """Records, at most, and good texts, that the classifier learns from; which ones depends on their places alone."""


def _features(text: str, options: QualitySample) -> np.ndarray:
    """Return the features of a text, each once."""
    return np.unique(ngrams(words(text), 1) % np.uint64(options.features)).astype(np.int64)


def _rank(place: int) -> int:
    """Return a number by which places are in an order that looks like chance."""
    return (place * 0x9E3779B97F4A7C15) & (2**64 - 1)


class _Sample:
    def __init__(self, options: QualitySample, cfg):
        self.options, self.cfg = options, cfg
        self.found: list[tuple[int, np.ndarray]] = []

    def add(self, place: int, record: Record) -> None:
        self.found.append((_rank(place), _features(text_of(record, self.cfg.text_key), self.options)))
        if len(self.found) >= 2 * self.options.sample:
            self._cut()

    def _cut(self) -> None:
        self.found = sorted(self.found, key=lambda pair: pair[0])[: self.options.sample]

    def arrays(self) -> Arrays:
        self._cut()
        sets = [features for _, features in self.found]
        return {
            "ranks": np.array([rank for rank, _ in self.found], np.uint64),
            "features": np.concatenate(sets) if sets else np.zeros(0, np.int64),
            "counts": np.array([len(each) for each in sets], np.int64),
        }


def _combine(observed: list[Arrays], options: QualitySample, cfg) -> Arrays:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    del cfg
    if not options.good:
        raise ConfigError("quality_sample.good is empty: name files of good texts, or leave the step out")
    ranked: list[tuple[int, np.ndarray]] = []
    for shard in observed:
        rows = np.split(shard["features"], np.cumsum(shard["counts"])[:-1])
        ranked += zip(shard["ranks"].tolist(), rows, strict=False)
    ranked = sorted(ranked, key=lambda pair: pair[0])[: options.sample]
    good = [_features(text, options) for text in texts("quality_sample.good", options.good, options.columns)]
    models = []
    for half in (0, 1):
        raw = [features for rank, features in ranked if _half(rank) != half]
        if not raw:
            raise PrepareError("quality_sample: too few records are left to learn from")
        rows = [*good[: options.sample], *raw]
        lengths = np.array([len(row) for row in rows])
        weights = np.repeat(1 / np.sqrt(np.maximum(lengths, 1)), lengths)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        matrix = csr_matrix((weights, np.concatenate(rows), ends), (len(rows), options.features))
        labels = np.arange(len(rows)) < len(rows) - len(raw)
        # Hardly regularised, as theirs was not: a good text must reach a score near 1, or it is drawn rarely.
        model = LogisticRegression(C=100.0, class_weight="balanced", solver="liblinear", random_state=0)
        models.append(model.fit(matrix, labels))
    return {"weights": np.array([m.coef_[0] for m in models]), "bias": np.array([m.intercept_[0] for m in models])}


def _half(rank: int) -> int:
    """Return which of two classifiers judges a record: the one that has not learnt from it as one of the others."""
    return rank >> 40 & 1


def _build(options: QualitySample, cfg, state: Arrays) -> Callable[[int, Record], Record | Dropped]:
    weights, bias = state["weights"], state["bias"]

    def apply(place: int, record: Record) -> Record | Dropped:
        half = _half(_rank(place))
        text = text_of(record, cfg.text_key)
        features = _features(text, options)
        logit = weights[half][features].sum() / max(len(features), 1) ** 0.5 + bias[half]
        score = 1 / (1 + np.exp(-logit))
        drawn = hashlib.blake2b(f"{cfg.seed}/{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        uniform = (int.from_bytes(drawn) >> 11) / 2**53
        if (1 - uniform) ** (-1 / options.alpha) - 1 > 1 - score:
            return {**record, "quality": round(float(score), 6)}
        return Dropped("not_drawn", f"quality {score:.3f}")

    return apply


STEP = Fitted(_Sample, _combine, _build, QualitySample)
