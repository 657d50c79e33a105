"""How many UTF-8 bytes of its text each token of a shard stands for, by which nats per token become bits per byte."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.tokens.cache import content_key, make_once
from bigjax.data.tokens.shards import Shard, Side, batches
from bigjax.data.tokens.tokenizers import Tokenizer

FORMAT = 1
CHUNK = 2**24
"""Tokens that are counted at a time."""

BytesAt = Callable[[np.ndarray], np.ndarray]
"""From places in a shard's tokens, of any shape, to the bytes that stand there."""


def bytes_at(side: Side, tokenizer: Tokenizer, root: Path, shard: Shard, opening: Sequence[int] = ()) -> BytesAt:
    """Return how many bytes of their text the tokens of a shard stand for; those of a document sum to its text's.

    By the spelling of the tokens, where these sum to the bytes of the text. A definition may change a text first, by a
    space before it or another Unicode form, or spell a space as three bytes: then each token is laid on the text, which
    is kept in the cache below `root`.

    Args:
      shard: the tokens of `side`, each document after `opening`.

    Raises:
      DataError: the cache cannot be read or written.
    """
    table = tokenizer.token_bytes
    if table is not None and _sum(table, shard.tokens) == shard.num_bytes:
        return lambda places: table[shard.tokens[places]]
    folder = root / "bytes" / content_key(FORMAT, side.key(), tokenizer.digest, list(opening))
    make_once(folder, lambda temporary: _write(temporary, side, tokenizer, len(opening)))
    try:
        counts = np.memmap(folder / "bytes.bin", np.uint32, "r", shape=shard.tokens.shape)
    except (OSError, ValueError):
        raise DataError(
            f"the cached {folder}/bytes.bin is not that of the text: delete {folder} and run again"
        ) from None
    return lambda places: counts[places]


def _sum(table: np.ndarray, tokens: np.ndarray) -> int:
    parts = (tokens[start : start + CHUNK] for start in range(0, len(tokens), CHUNK))
    return sum(int(table[part].sum(dtype=np.int64)) for part in parts)


def _write(folder: Path, side: Side, tokenizer: Tokenizer, opening: int) -> None:
    end = 0 if tokenizer.eos_id is None else 1
    with (folder / "bytes.bin").open("wb") as file:
        for batch in batches(side.documents()):
            texts = [text for _, text in batch]
            for text, (_, spans) in zip(texts, tokenizer.encode_spans(texts), strict=True):
                file.write(np.pad(aligned(text, spans), (opening, end)).astype(np.uint32).tobytes())


def aligned(text: str, spans: np.ndarray) -> np.ndarray:
    """Return the bytes of a text that each of its tokens stands for, `(n,)`; they sum to the bytes of the text.

    Of several tokens of one character the last has its bytes. What no token stands for, such as spaces that a
    definition drops, goes to the token after it, or to the last.

    Args:
      spans: (n, 2) which characters each token stands for, from and to.
    """
    if not len(spans):
        return np.zeros(0, np.int64)
    utf8 = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (utf8 > 0x7F).astype(np.int64) + (utf8 > 0x7FF) + (utf8 > 0xFFFF)
    before = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.maximum.accumulate(spans[:, 1])
    ends[-1] = len(text)
    last = np.append(ends[1:] > ends[:-1], True)
    counts = np.zeros(len(ends), np.int64)
    counts[last] = np.diff(before[ends[last]], prepend=0)
    return counts
