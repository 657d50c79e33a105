"""A shard: the tokens of one side of a source in one flat memory-mapped array, with the offset of every document.

- `tokens.bin`: uint16, or uint32 for vocabularies above 65,536, shape (tokens,);
- `offsets.bin`: int64, shape (documents + 1,): document d is tokens[offsets[d]:offsets[d + 1]];
- `names.jsonl`: a name per document;
- `manifest.json`: the sizes, written last and checked against the files whenever a shard is opened.
"""

import array
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.sources.opening import Document
from bigjax.data.tokens.cache import content_key, make_once
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.errors import named

FORMAT = 1
BATCH_CHARACTERS = 4_000_000
"""Documents are tokenised together until they have this many characters."""


@dataclass(frozen=True)
class Shard:
    """Tokenised documents.

    Attributes:
      folder: where they lie.
      tokens: (tokens,) uint16 or uint32.
      offsets: (documents + 1,) int64.
      num_bytes: UTF-8 bytes of the documents' text.
      digest: sha256 of tokens and offsets.
    """

    folder: Path
    tokens: np.ndarray
    offsets: np.ndarray
    num_bytes: int
    digest: str

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> dict[str, int]:
        """Number of documents, tokens and UTF-8 bytes."""
        return {"documents": self.num_documents, "tokens": len(self.tokens), "bytes": self.num_bytes}

    def names(self) -> list[str]:
        """Read the documents' names."""
        return [json.loads(line) for line in (self.folder / "names.jsonl").read_text().splitlines()]


class Side(Protocol):
    """Documents that are tokenised together."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents, in order."""
        ...

    def key(self) -> list[str]:
        """What the documents depend on, for a cache."""
        ...


def tokenize(side: Side, tokenizer: Tokenizer, root: Path, opening: Sequence[int] = ()) -> Shard:
    """Return the shard of one side of a source, from the cache below `root` if it is there.

    Args:
      opening: the ids that every document starts with.
    """
    folder = root / "tokens" / content_key(FORMAT, side.key(), tokenizer.digest, *([list(opening)] if opening else []))
    make_once(folder, lambda temporary: write_shard(temporary, side.documents(), tokenizer, opening))
    return open_shard(folder)


def write_shard(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer, opening: Sequence[int] = ()) -> None:
    """Tokenise documents into a folder, each between `opening` and the tokenizer's end-of-text id if it has one."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    offsets, num_bytes, digest = array.array("q", [0]), 0, hashlib.sha256()
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "names.jsonl").open("w") as names:
        for name, text, ids in encoded(documents, tokenizer, opening):
            content = ids.astype(dtype).tobytes()
            tokens.write(content)
            digest.update(content)
            names.write(json.dumps(name) + "\n")
            num_bytes += len(text.encode())
            offsets.append(offsets[-1] + len(content) // dtype.itemsize)
    (folder / "offsets.bin").write_bytes(offsets.tobytes())
    digest.update(offsets.tobytes())
    manifest = {
        "format": FORMAT,
        "dtype": dtype.name,
        "tokens": offsets[-1],
        "documents": len(offsets) - 1,
        "bytes": num_bytes,
        "sha256": digest.hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def encoded(
    documents: Iterable[Document], tokenizer: Tokenizer, opening: Sequence[int] = ()
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, text and ids of each document, between `opening` and the tokenizer's end-of-text id if it has one."""
    start, end = np.array(opening, np.int32), np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], np.int32)
    for batch in batches(documents):
        for (name, text), ids in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
            yield name, text, np.concatenate([start, ids, end])


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents by as many as are tokenised together."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def open_shard(folder: Path) -> Shard:
    """Map a shard into memory.

    Raises:
      DataError: the manifest is missing or damaged, or a file has another size than it says.
    """
    remedy = f"delete {folder} and run again"
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        dtype = np.dtype(manifest["dtype"])
        sizes = [
            ("tokens.bin", manifest["tokens"], dtype),
            ("offsets.bin", manifest["documents"] + 1, np.dtype("int64")),
        ]
        num_bytes, digest = manifest["bytes"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the cached tokens have no readable manifest ({named(error)}): {remedy}") from None
    arrays = []
    for name, length, item in sizes:
        file = folder / name
        size = file.stat().st_size if file.exists() else 0
        if size != length * item.itemsize:
            raise DataError(
                f"the cached {file} has {size:,} bytes, but its manifest says {length * item.itemsize:,}: {remedy}"
            )
        # A plain view: slicing the memmap class itself is several times slower. An empty file cannot be mapped.
        arrays.append(np.asarray(np.memmap(file, item, "r", shape=(length,))) if length else np.zeros(0, item))
    return Shard(folder, arrays[0], arrays[1], num_bytes, digest)
