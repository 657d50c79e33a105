"""What the bytes of a shard of tokens mean: by the index beside it, by its first bytes, or ids and nothing else.

- `megatron`: `NAME.bin` with `NAME.idx`, see `megatron`;
- `llm.c`: 256 int32 come first, a number that says the type of the ids, a version, and how many ids follow;
- `raw`: uint16 ids from the first byte to the last, as nanoGPT writes them.

Only Megatron's index says where documents start. In the others a document starts at the end-of-text id, which llm.c
writes first, or after it, as nanoGPT writes it last.
"""

from typing import NamedTuple

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.stored.megatron import Index
from bigjax.paths import AnyPath

LLM_C_HEADER = 256 * 4
LLM_C = {20240520: ("uint16", 1, "gpt-2"), 20240801: ("uint32", 7, "llama-3")}
"""The first number of a file of llm.c: the type of its ids, its version, and the tokenizer that it claims."""

LOOKED_AT = 2**20
"""Ids of a file without any header that are looked at for signs of another type."""


class Layout(NamedTuple):
    """Where the ids of a shard lie.

    Attributes:
      kind: `megatron`, `llm.c` or `raw`. dtype: of the ids. start: the byte of the first. tokens: how many there are.
      documents: how many documents, 0 where nothing says. claims: the tokenizer that it says it is of, if it does.
    """

    kind: str
    dtype: str
    start: int
    tokens: int
    documents: int
    claims: str


def index_of(path: AnyPath) -> AnyPath:
    """Return where the index of a shard would lie."""
    return path.with_suffix(".idx")


def layout_of(path: AnyPath, index: Index | None) -> Layout:
    """Return the layout of a `.bin`; reads its first bytes alone.

    Args:
      index: that which lies beside it, if one does.

    Raises:
      DataError: it is cut short, or its index or header says another size.
    """
    size = path.stat().st_size
    if index is not None:
        if size != index.tokens * index.dtype.itemsize:
            raise DataError(
                f"{path} has {size:,} bytes, but its index says {index.tokens * index.dtype.itemsize:,}: one of them "
                "is cut short or not of the other; make both again"
            )
        return Layout("megatron", index.dtype.name, 0, index.tokens, index.documents, "")
    with path.open("rb") as file:
        head = np.frombuffer(file.read(12), "<i4") if size >= 12 else np.zeros(3, "<i4")
    if int(head[0]) in LLM_C:
        dtype, version, claims = LLM_C[int(head[0])]
        tokens = int(head[2])
        if int(head[1]) != version:
            raise DataError(f"{path} is version {head[1]} of llm.c's files, and this reads version {version}")
        # Some writers say uint16 of ids that are uint32; the size tells.
        for name in dict.fromkeys((dtype, "uint32")):
            if size == LLM_C_HEADER + tokens * np.dtype(name).itemsize:
                return Layout("llm.c", name, LLM_C_HEADER, tokens, 0, claims if name == dtype else "")
        raise DataError(
            f"{path} has {size:,} bytes, but its header says {tokens:,} ids of {dtype}, which take "
            f"{LLM_C_HEADER + tokens * np.dtype(dtype).itemsize:,}: it is cut short; make it again"
        )
    if size % 2:
        raise DataError(
            f"{path} has {size:,} bytes, which are no whole number of uint16 ids: it is cut short or no tokens"
        )
    _check_width(path)
    return Layout("raw", "uint16", 0, size // 2, 0, "")


def _check_width(path: AnyPath) -> None:
    """Raise DataError if ids without a header look like 32 bits each: then every other one of 16 would be 0."""
    with path.open("rb") as file:
        ids = np.frombuffer(file.read(2 * LOOKED_AT), "<u2")
    if len(ids) >= 4 and len(ids) % 2 == 0 and ids[0::2].any() and not ids[1::2].any():
        raise DataError(
            f"{path} has no header, so its ids would be uint16, but every other one is 0, as in uint32: write them as "
            "uint16, or in the format of Megatron or llm.c"
        )


MADE_BY = "sha256:"
"""What a claim starts with that names a tokenizer by its digest."""


def claim_of(digest: str) -> str:
    """Return how shards say which tokenizer, of this digest, they were made with."""
    return f"{MADE_BY}{digest[:24]}"
