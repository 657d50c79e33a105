"""Rows of stored tokens, as `packed.PackedText` cuts them from the tokens of a text."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigjax.data.rows.packing import num_rows, packed
from bigjax.data.stored.corpus import Corpus


@dataclass(frozen=True)
class StoredText:
    """Rows for predicting the next token, cut from a part of a corpus without gap or overlap.

    Attributes that are not listed are as in `PackedText`.

    Attributes:
      first, last: the part of the corpus. eos_id: the id that parts documents where no index does, if there is one.
      table: (V,) UTF-8 bytes that each id stands for; with `score_bytes` rows also have `bytes` (B, S) int32.
    """

    spec: str
    corpus: Corpus
    first: int
    last: int
    seq_len: int
    document_mask: bool
    contiguous: bool = False
    eos_id: int | None = None
    table: np.ndarray | None = None
    score_bytes: bool = False

    def scored(self) -> "StoredText":
        """Return the same rows with the bytes of their targets, where each id is known to stand for some."""
        return dataclasses.replace(self, score_bytes=self.table is not None)

    @property
    def digest(self) -> str:
        """By content, and which part of it this is."""
        whole = (self.first, self.last) == (0, len(self.corpus))
        return self.corpus.digest if whole else f"{self.corpus.digest}[{self.first}:{self.last}]"

    @property
    def sizes(self) -> dict[str, int]:
        count = self.last - self.first
        return {
            "documents": self.corpus.count_documents(self.first, self.last),
            "tokens": count,
            "bytes": self.corpus.text_bytes if count == len(self.corpus) else 0,
        }

    @property
    def identity(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len, "document_mask": self.document_mask}

    def __len__(self) -> int:
        return num_rows(self.last - self.first, self.seq_len)

    def arrays(self, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
        del ids
        starts = self.first + rows.astype(np.int64) * self.seq_len
        lengths = np.clip(self.last - starts, 0, self.seq_len + 1)
        stream_BT = np.zeros((len(rows), self.seq_len + 1), np.int32)
        self.corpus.ahead(list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True)))
        for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            if length:
                stream_BT[row, :length] = self.corpus.read(start, start + length)
        opens_BT = self._opens(stream_BT, starts, lengths) if self.document_mask else None
        arrays = packed(stream_BT, lengths, opens_BT)
        if self.contiguous:
            arrays["continues"] = (~self._begins(starts)).astype(np.int32)
        if self.score_bytes and self.table is not None:
            found = self.table[np.minimum(stream_BT[:, 1:], len(self.table) - 1)]
            arrays["bytes"] = np.where(arrays["weights"] > 0, found, 0).astype(np.int32)
        return arrays

    def _opens(self, stream_BT: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Mark, (B, S + 1) bool, where a document starts, first columns excepted."""
        opens_BT = np.zeros(stream_BT.shape, bool)
        if self.corpus.indexed:
            for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
                if length > 1:
                    opens_BT[row, self.corpus.document_starts(start + 1, start + length) - start] = True
        elif self.eos_id is not None:
            ends_BT = stream_BT == self.eos_id
            # llm.c writes the id before a document, nanoGPT after it.
            opens_BT[:, 1:] = ends_BT[:, 1:] if self.corpus.kind == "llm.c" else ends_BT[:, :-1]
        return opens_BT

    def _begins(self, starts: np.ndarray) -> np.ndarray:
        """Return whether each row starts with a document, (B,) bool."""
        return np.array([self._is_start(start) for start in starts.tolist()], bool)

    def _is_start(self, start: int) -> bool:
        if start == self.first or start >= self.last or not self.document_mask:
            return start == self.first
        if self.corpus.indexed:
            return len(self.corpus.document_starts(start, start + 1)) > 0
        place = start if self.corpus.kind == "llm.c" else start - 1
        return self.eos_id is not None and int(self.corpus.read(place, place + 1)[0]) == self.eos_id
