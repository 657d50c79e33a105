"""A corpus: many shards of tokens as one stream of ids, of which any part can be read at any time.

What is in memory is a few numbers a shard; of the ids nothing but what is asked for.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.stored import manifest
from bigjax.data.stored.layouts import index_of
from bigjax.data.stored.places import find_shards
from bigjax.data.stored.reading import Reader
from bigjax.paths import AnyPath, as_path


@dataclass(frozen=True)
class Corpus:
    """Shards one after the other, all of one layout.

    Attributes:
      folders: those that the shards lie in. folder: (shards,) which of them each does. names: (shards,) bytes.
      ends: (shards + 1,) number of ids before each shard, and of all.
      documents: (shards,) number of documents, 0 where no index says.
      text_bytes: UTF-8 bytes of their text, 0 where nobody knows.
      kind, dtype, start: as in a `Layout`. claims: the tokenizers that the shards say they are of.
      max_id: the largest id. largest: the name of the shard that has it.
      reader: reads the shards.
      digests: (shards,) sha256 of each, in 32 bytes. digest: sha256 of those, by which the corpus is known.
    """

    folders: tuple[str, ...]
    folder: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    documents: np.ndarray
    text_bytes: int
    kind: str
    dtype: np.dtype
    start: int
    claims: tuple[str, ...]
    max_id: int
    largest: str
    digests: np.ndarray
    digest: str
    reader: Reader

    def __len__(self) -> int:
        """Number of ids."""
        return int(self.ends[-1])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.names)

    def path(self, shard: int) -> AnyPath:
        """Return where a shard lies."""
        return as_path(self.folders[self.folder[shard]]) / self.names[shard].decode()

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield name and sha256 of each shard."""
        for name, digest in zip(self.names, self.digests, strict=True):
            yield name.decode(), digest.tobytes().hex()

    def read(self, first: int, last: int) -> np.ndarray:
        """Return the ids at places [first, last), (last - first,).

        Raises:
          DataError: a shard is gone, or shorter than it was.
        """
        parts = [self._of_shard(*piece) for piece in self._pieces(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, self.dtype), *parts])

    def ahead(self, parts: Sequence[tuple[int, int]]) -> None:
        """Have parts [first, last) of the stream that lie in an object store be fetched: they are about to be read."""
        size = self.dtype.itemsize
        for first, last in parts:
            pieces = self._pieces(first, last)
            self.reader.ahead(
                (self.path(shard), self._bytes(shard), self.start + a * size, (b - a) * size) for shard, a, b in pieces
            )

    def document_starts(self, first: int, last: int) -> np.ndarray:
        """Return the places in [first, last) at which a document starts by the index, ascending, int64."""
        found = [np.zeros(0, np.int64)]
        for shard, begin, end in self._pieces(first, last):
            index = self.reader.index(index_of(self.path(shard)))
            found.append(index.starts(begin, end) + int(self.ends[shard]))
        return np.concatenate(found)

    def count_documents(self, first: int, last: int) -> int:
        """Return how many documents start in [first, last) by the index."""
        if not self.indexed:
            return 0
        begin = int(np.searchsorted(self.ends, first))
        end = int(np.searchsorted(self.ends, last, side="right")) - 1
        if begin > end:  # all in one shard
            return len(self.document_starts(first, last))
        edges = ((first, int(self.ends[begin])), (int(self.ends[end]), last))
        return int(self.documents[begin:end].sum()) + sum(len(self.document_starts(*edge)) for edge in edges)

    @property
    def indexed(self) -> bool:
        """Whether an index says where documents start."""
        return self.kind == "megatron"

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield the shards of a part of the stream, with the part of each."""
        shard = int(np.searchsorted(self.ends, first, side="right")) - 1
        while first < last:
            before, after = self.ends[shard : shard + 2].tolist()
            if after > first:
                yield shard, first - before, min(last, after) - before
            first, shard = max(first, after), shard + 1

    def _bytes(self, shard: int) -> int:
        return self.start + int(self.ends[shard + 1] - self.ends[shard]) * self.dtype.itemsize

    def _of_shard(self, shard: int, begin: int, end: int) -> np.ndarray:
        path, size = self.path(shard), self.dtype.itemsize
        content = self.reader.read(path, self._bytes(shard), self.start + begin * size, (end - begin) * size)
        if len(content) != (end - begin) * size:
            raise DataError(f"{path} is shorter than when the run started: put it back")
        return np.frombuffer(content, self.dtype)


def grouped(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder of some files, which are sorted, with the names of those in it."""
    for folder, inside in groupby(names, key=os.path.dirname):
        yield folder, [name[len(folder) + 1 :] if folder else name for name in inside]


def open_corpus(pattern: str, root: Path, told: manifest.Progress | None = None) -> Corpus:
    """Open the shards that match a glob; those that no manifest knows are read, once.

    Args:
      root: cache folder. told: is told of bytes that are read.

    Raises:
      DataError: nothing matches, a shard has changed or makes no sense, or two are of another layout.
    """
    folders, counts, names, rows = [], [], [], []
    for folder, inside in grouped(find_shards(pattern)):
        bare = np.array([name.encode() for name in inside])
        folders.append(folder)
        counts.append(len(bare))
        names.append(bare)
        rows.append(manifest.rows_of(as_path(folder), bare, root, told))
    where = np.repeat(np.arange(len(folders)), counts)
    return _joined(folders, where, np.concatenate(names), np.concatenate(rows), Reader(root))


def _joined(folders: Sequence[str], folder: np.ndarray, names: np.ndarray, rows: np.ndarray, reader: Reader) -> Corpus:
    first = rows[0]
    other = np.flatnonzero((rows["kind"] != first["kind"]) | (rows["dtype"] != first["dtype"]))
    if len(other):
        said = [names.tolist()[number].decode() for number in (other[0], 0)]
        kinds = [
            f"{dtype.decode()} ids in {kind.decode()}'s layout"
            for dtype, kind in rows[[other[0], 0]][["dtype", "kind"]].tolist()
        ]
        raise DataError(f"{said[0]} has {kinds[0]}, but {said[1]} has {kinds[1]}: name them as two sources")
    largest = int(np.argmax(rows["max_id"]))
    digests = np.ascontiguousarray(rows["sha256"])
    return Corpus(
        tuple(folders),
        folder.astype(np.int32),
        names,
        np.concatenate([[0], np.cumsum(rows["tokens"])]),
        rows["documents"].copy(),
        int(rows["text_bytes"].sum()) if rows["text_bytes"].all() else 0,
        first["kind"].decode(),
        np.dtype(first["dtype"].decode()).newbyteorder("<"),
        int(first["start"]),
        tuple(claim.decode() for claim in np.unique(rows["claims"]) if claim),
        int(rows["max_id"][largest]),
        names[largest].decode(),
        digests,
        hashlib.sha256(digests.tobytes()).hexdigest(),
        reader,
    )
