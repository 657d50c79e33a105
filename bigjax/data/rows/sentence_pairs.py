"""Rows for predicting masked tokens and whether one text follows another (Devlin et al. 2019, appendix A.2)."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.rows.masking import Masking, row_generator
from bigjax.data.rows.windows import Windows
from bigjax.data.tokens.shards import Shard


@dataclass(frozen=True, eq=False)
class SentencePairs:
    """Rows `[CLS] A [SEP] B [SEP]`, padded. A and B are spans of text, "sentences" in the paper's sense.

    A piece of a document is cut in two at the start of a word. In half of the rows B is the second part; in the others
    it is as long a span of another document, from anywhere in it. What a row is, and what is hidden in it, depends on
    seed and id alone, so it is drawn afresh in every epoch. A piece too short to be cut is A alone, beside a B from
    another document.

    Attributes:
      word_starts: (vocab,) bool, where words start.
    """

    spec: str
    windows: Windows
    seq_len: int
    seed: int
    masking: Masking
    word_starts: np.ndarray

    @classmethod
    def build(cls, cfg: Config, spec: str, shard: Shard, masking: Masking, word_starts: np.ndarray) -> "SentencePairs":
        """Cut a shard into rows.

        Raises:
          DataError: it is a single document, so there is no other to draw from.
        """
        if np.count_nonzero(np.diff(shard.offsets)) < 2:
            raise DataError(f"{spec!r} is one document, but pairs that do not belong together need a second one")
        seq_len = cfg.data.seq_len
        return cls(spec, Windows(shard, seq_len - 3), seq_len, cfg.train.seed, masking, word_starts)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.windows.shard.digest}/pairs".encode()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        return self.windows.shard.sizes

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, **self.masking.identity}

    def __len__(self) -> int:
        return len(self.windows)

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return what `MaskedText.arrays` does, and of each token and pair what it belongs to.

        `types` `(B, S)` is 0 for `[CLS] A [SEP]` and padding, 1 for `B [SEP]`; `next_targets` `(B,)` is 0 where B
        follows A and 1 where it does not, as in the paper's code; `next_weights` `(B,)`.
        """
        arrays, special = self.masking.blank(len(rows), self.seq_len), self.masking.special
        arrays["types"] = np.zeros_like(arrays["tokens"])
        arrays["next_targets"] = np.zeros(len(rows), np.int32)
        arrays["next_weights"] = np.zeros(len(rows), np.float32)
        for b, (row, row_id) in enumerate(zip(rows.tolist(), ids.tolist(), strict=True)):
            if row >= len(self):
                continue
            rng = row_generator(self.seed, row_id)
            first, second, apart = self.pair(rng, row)
            content = np.concatenate([first, second])
            chosen, hidden = self.masking.hide(rng, content)
            cut, full = len(first), len(content) + 3
            parts = (hidden[:cut].tolist(), hidden[cut:].tolist())
            arrays["tokens"][b, :full] = [special["cls"], *parts[0], special["sep"], *parts[1], special["sep"]]
            arrays["segments"][b, :full] = 1
            arrays["types"][b, cut + 2 : full] = 1
            arrays["masked"][b, : len(chosen)] = chosen + np.where(chosen < cut, 1, 2)
            arrays["targets"][b, : len(chosen)] = content[chosen]
            arrays["weights"][b, : len(chosen)] = 1
            arrays["next_targets"][b] = apart
            arrays["next_weights"][b] = 1
        return arrays

    def pair(self, rng: np.random.Generator, row: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Draw A, B and whether B is of another document."""
        piece = self.windows[row].astype(np.int32)
        apart = rng.random() < 0.5
        cut = self._word_start(piece, int(rng.integers(1, len(piece)))) if len(piece) > 1 else 1
        wanted = len(piece) - cut
        if wanted and not apart:
            return piece[:cut], piece[cut:], False
        return piece[:cut], self._elsewhere(rng, row, wanted or self.windows.length - 1), True

    def _elsewhere(self, rng: np.random.Generator, row: int, wanted: int) -> np.ndarray:
        """Return a span of `wanted` tokens, or all that there are, of a document other than that of a row."""
        shard, own = self.windows.shard, self.windows.document(row)
        start, stop = shard.offsets[own : own + 2].tolist()
        place = int(rng.integers(len(shard.tokens) - (stop - start)))
        place += (stop - start) * (place >= start)
        document = int(np.searchsorted(shard.offsets, place, side="right")) - 1
        first, last = shard.offsets[document : document + 2].tolist()
        tokens = shard.tokens[first:last].astype(np.int32)
        begin = self._word_start(tokens, max(0, min(place - first, len(tokens) - wanted)))
        return tokens[begin : begin + wanted]

    def _word_start(self, tokens: np.ndarray, place: int) -> int:
        """Return the nearest start of a word before a place, or the place itself if there is none but the first."""
        starts = np.flatnonzero(self.word_starts[tokens[: place + 1]])
        return int(starts[-1]) if len(starts) and starts[-1] else place
