"""Rows for classification: a text and the name of its class."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.shards import Shard
from bigjax.data.sources import SplitSource, open_source


def read_labels(cfg: Config, side: SplitSource) -> Iterator[str]:
    """Yield the label of every document of a side, in its order.

    Raises:
      DataError: the source has no column `data.label_key`.
    """
    labels = open_source(side.source.spec, cfg.data.label_key)
    pairs = zip(side.source.read(), labels.read(), strict=True)
    return (label for document, (_, label) in pairs if side.keeps(*document))


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
        index = {name: i for i, name in enumerate(classes)}
        found = list(read_labels(cfg, side))
        unknown = sorted(set(found) - set(index))
        if unknown:
            raise DataError(
                f"{side.source.spec!r} has the label {unknown[0]!r}, which is none of the classes {', '.join(classes)}"
            )
        empty = [name for name in classes if not Counter(found)[name]]
        if empty and side.split == "train":
            raise DataError(f"{side.source.spec!r} has no text of the class {empty[0]!r} to train on")
        labels = np.array([index[label] for label in found], np.int32)
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
