"""Megatron-LM's token format: `NAME.bin` has the ids of all sequences, `NAME.idx` where each sequence and document is.

The index holds, little-endian: the 9 bytes `MMIDIDX\\0\\0`; the version, uint64 1; a code for the type of the ids,
uint8; the number of sequences and the length of the list of documents, both uint64; the length of each sequence in ids,
int32; the byte at which it starts, int64; and the documents, int64: document d is the sequences from entry d up to
entry d + 1. Multimodal ones add a mode for each sequence, int8, which is not read here. The source is `IndexedDataset`
of megatron.core.
"""

import array
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from bigjax.data.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
CODES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""Types of ids by their code; those of floats are none."""

HEADER = struct.Struct("<9sQBQQ")
LONGEST = 2**31 - 1
"""Ids of a sequence, whose length is an int32."""


class Index:
    """The index of a shard, mapped into memory.

    Attributes:
      dtype: the type of the ids. tokens: how many there are. documents: how many documents these are.

    Raises:
      DataError: it is not such an index, or is cut short.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
        if len(head) < HEADER.size or head[: len(MAGIC)] != MAGIC:
            raise DataError(f"{path} is no Megatron index: it does not start with {MAGIC[:7].decode()}")
        _, version, code, sequences, documents = HEADER.unpack(head)
        if version != VERSION or code not in CODES:
            raise DataError(
                f"{path} has version {version} and type {code} of ids, which are none of Megatron's for ids"
            )
        needed = HEADER.size + 12 * sequences + 8 * documents
        if size not in (needed, needed + sequences) or not sequences or not documents:
            raise DataError(
                f"{path} has {size:,} bytes, but {sequences:,} sequences in {max(documents - 1, 0):,} documents take "
                f"{needed:,}: make it again"
            )
        self.path, self.dtype = path, np.dtype(CODES[code]).newbyteorder("<")

        def mapped(dtype: str, start: int, length: int) -> np.ndarray:
            return np.memmap(path, dtype, "r", start, (length,))

        self.lengths = mapped("<i4", HEADER.size, sequences)
        self.pointers = mapped("<i8", HEADER.size + 4 * sequences, sequences)
        self._documents = mapped("<i8", HEADER.size + 12 * sequences, documents)
        end, rest = divmod(int(self.pointers[-1]), self.dtype.itemsize)
        self.tokens = end + int(self.lengths[-1])
        self.documents = documents - 1
        if rest or int(self._documents[0]) != 0 or int(self._documents[-1]) != sequences or int(self.pointers[0]) != 0:
            raise DataError(
                f"{path} disagrees with itself: its first or last sequence is not where it says; make it again"
            )

    def check(self) -> None:
        """Make sure that the sequences follow each other without a gap and the documents, too; reads all of the index.

        Raises:
          DataError: they do not.
        """
        lengths = np.asarray(self.lengths, np.int64)
        expected = np.concatenate([[0], np.cumsum(lengths[:-1])]) * self.dtype.itemsize
        if (lengths < 0).any() or (expected != self.pointers).any():
            at = int(np.flatnonzero((lengths < 0) | (expected != self.pointers))[0])
            raise DataError(
                f"{self.path} disagrees with itself: sequence {at} does not start where the one before ends"
            )
        if (np.diff(self._documents) < 0).any():
            raise DataError(f"{self.path} disagrees with itself: its documents are not in order")

    def starts(self, first: int, last: int) -> np.ndarray:
        """Return the places in [first, last) at which a document starts, ascending, int64."""
        size = self.dtype.itemsize
        sequences = np.searchsorted(self.pointers, [first * size, last * size])
        inside = np.searchsorted(self._documents, sequences)
        found = np.asarray(self._documents[inside[0] : inside[1]])
        return np.unique(np.asarray(self.pointers)[found] // size if len(found) else found)


class Writer:
    """Writes documents as a shard, one sequence each: `with Writer(path) as writer: writer.add(ids)`.

    The index comes last, so that a shard with an index is whole.

    Args:
      path: of the `.bin`; the index lies beside it. dtype: one of `CODES`.
    """

    def __init__(self, path: str | Path, dtype: np.dtype):
        self._path, self.dtype = Path(path), np.dtype(dtype)
        self._lengths = array.array("i")
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Writer":
        self._file = self._path.open("wb")
        return self

    def add(self, ids: np.ndarray) -> bytes:
        """Write the ids of a document; return its bytes as they lie on disk."""
        assert self._file is not None
        content = np.asarray(ids, self.dtype.newbyteorder("<")).tobytes()
        self._file.write(content)
        self._lengths.append(len(content) // self.dtype.itemsize)
        return content

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None:
            write_index(self._path.with_suffix(".idx"), np.asarray(self._lengths, np.int32), self.dtype)


def write_index(path: str | Path, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write the index of documents of one sequence each.

    Args:
      lengths: (documents,) of each, in ids.
    """
    code = {name: code for code, name in CODES.items()}[np.dtype(dtype).name]
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]).astype("<i8") * np.dtype(dtype).itemsize
    with Path(path).open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1))
        file.write(np.asarray(lengths, "<i4").tobytes())
        file.write(pointers[: len(lengths)].tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def write(path: str | Path, documents: Iterable[np.ndarray], dtype: np.dtype) -> None:
    """Write documents, each its ids, as the shard `path`, a `.bin`, with its index beside it."""
    with Writer(path, dtype) as writer:
        for ids in documents:
            writer.add(ids)
