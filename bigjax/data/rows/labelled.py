"""Rows for classification: a text and the name of its class; and what is shared by all that has classes."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.sources.opening import SplitSource, open_source
from bigjax.data.tokens.shards import Shard
from bigjax.errors import brief, listed


def read_labels(cfg: Config, side: SplitSource) -> Iterator[str]:
    """Yield the label of every document of a side, in its order; a number or a truth value as a table spells it.

    Raises:
      DataError: the source has no column `data.label_key`.
    """
    labels = open_source(side.source.spec, cfg.data.label_key, labels=True)
    pairs = zip(side.source.read(), labels.read(), strict=True)
    return (label for document, (_, label) in pairs if side.keeps(*document))


def classes_of(cfg: Config, labels: Iterable[str]) -> tuple[str, ...]:
    """Return `data.classes`, by default all the labels that are trained on, sorted.

    Raises:
      DataError: there is no label, one is empty, or they are not as many as `model.num_classes`.
    """
    classes = cfg.data.classes or tuple(sorted(set(labels)))
    if not classes:
        raise DataError(f"there is no label to train on in {_sources(cfg)}")
    if not all(name.strip() for name in classes):
        raise DataError(f"a label to train on in {_sources(cfg)} is empty: label it, or leave it out")
    if len(classes) != cfg.model.num_classes:
        raise DataError(
            f"there are {len(classes)} classes ({listed(classes)}), but model.num_classes={cfg.model.num_classes}"
        )
    return classes


def _sources(cfg: Config) -> str:
    return listed(map(repr, cfg.data.sources), width=300)


def numbers_of(side: SplitSource, labels: Sequence[str], classes: tuple[str, ...], what: str) -> np.ndarray:
    """Return the number of the class of each label of a side, int32; `what` it is that has a label, a text or a word.

    Classes that have only numbers, `LABEL_0` and so on, are meant by the numbers alone, too.

    Raises:
      DataError: a label is not among the classes, or a class that is trained on has none.
    """
    index, found = {name: i for i, name in enumerate(classes)}, Counter(labels)
    if classes == numbered(len(classes)):
        index |= {str(i): i for i in range(len(classes))}
    if unknown := sorted(set(found) - set(index)):
        raise DataError(
            f"{side.source.spec!r} has the label {brief(unknown[0])}, which is none of the classes {listed(classes)}: "
            "set data.classes to the labels of the data, in the order of the model's classes"
        )
    numbers = np.array([index[label] for label in labels], np.int32)
    empty = np.flatnonzero(np.bincount(numbers, minlength=len(classes)) == 0)
    if len(empty) and side.split == "train":
        raise DataError(f"{side.source.spec!r} has no {what} of the class {brief(classes[empty[0]])} to train on")
    return numbers


def numbered(count: int) -> tuple[str, ...]:
    """Return the names of classes that nobody named, as transformers has them."""
    return tuple(f"LABEL_{number}" for number in range(count))


def names_of_classes(cfg: Config) -> tuple[str, ...]:
    """Return the names of a trained model's classes, in the order of its logits."""
    return cfg.data.classes or numbered(cfg.model.num_classes)


@dataclass(frozen=True, eq=False)
class LabelledText:
    """Rows `[CLS] text [SEP]`, cut off at S tokens and padded, with the number of the text's class.

    Attributes:
      classes: their names; a label is an index into them. labels: (documents,) int32.
    """

    spec: str
    shard: Shard
    seq_len: int
    classes: tuple[str, ...]
    labels: np.ndarray
    special: dict[str, int]

    @classmethod
    def build(
        cls, cfg: Config, side: SplitSource, shard: Shard, classes: tuple[str, ...], special: dict[str, int]
    ) -> "LabelledText":
        """Pair the texts of a side with their labels.

        Raises:
          DataError: a label is not among the classes, or a class that is trained on has no text.
        """
        labels = numbers_of(side, list(read_labels(cfg, side)), classes, "text")
        return cls(side.source.spec, shard, cfg.data.seq_len, classes, labels, special)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.shard.digest.encode() + self.labels.tobytes()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        return self.shard.sizes

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, "classes": list(self.classes), "special": self.special}

    def __len__(self) -> int:
        return self.shard.num_documents

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return `tokens` and `segments` `(B, S)`, 0 in the latter for padding, and `targets` and `weights` `(B,)`."""
        del ids
        B = len(rows)
        tokens_BS = np.full((B, self.seq_len), self.special["pad"], np.int32)
        segments_BS = np.zeros((B, self.seq_len), np.int32)
        real = rows < len(self)
        for b in np.flatnonzero(real).tolist():
            start, stop = self.shard.offsets[rows[b] : rows[b] + 2].tolist()
            text = self.shard.tokens[start : min(stop, start + self.seq_len - 2)].tolist()
            tokens_BS[b, : len(text) + 2] = [self.special["cls"], *text, self.special["sep"]]
            segments_BS[b, : len(text) + 2] = 1
        targets_B = np.where(real, self.labels[np.minimum(rows, len(self) - 1)], 0).astype(np.int32)
        return {
            "tokens": tokens_BS,
            "segments": segments_BS,
            "targets": targets_B,
            "weights": real.astype(np.float32),
        }
