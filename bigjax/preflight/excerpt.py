"""The text of a run cut down to a few rows an epoch, so that a few steps see several epochs."""

import dataclasses
import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from bigjax.data import TextData, Tokenizer
from bigjax.data.order import build_order
from bigjax.data.packing import num_rows
from bigjax.data.shards import Shard


def excerpt(text: TextData, weights: Sequence[float], rows: int) -> TextData:
    """Return `text` with about `rows` training rows an epoch, and nothing else changed.

    Every source gives its share of the rows, by `weights` (`data.weights`) or, without them, by its size; at least one.
    They are packed from the first documents, each cut so that a row holds parts of two. The held-out text stays whole.
    """
    train = text.train
    sizes = weights or train.order.rows
    shares = [size / sum(sizes) for size in sizes]
    shards = tuple(
        _first_rows(shard, max(1, round(share * rows)), train.seq_len, text.tokenizer)
        for shard, share in zip(train.shards, shares, strict=True)
    )
    counts = [num_rows(len(shard.tokens), train.seq_len) for shard in shards]
    order = build_order(counts, weights, train.seed)
    return dataclasses.replace(text, train=dataclasses.replace(train, shards=shards, order=order))


def _first_rows(shard: Shard, rows: int, seq_len: int, tokenizer: Tokenizer) -> Shard:
    wanted = rows * seq_len + 1
    longest = max(-(-wanted // shard.num_documents), 3 * seq_len // 2)
    pieces, offsets = [], [0]
    for start, stop in pairwise(shard.offsets.tolist()):
        pieces.append(shard.tokens[start : min(stop, start + longest, start + wanted - offsets[-1])])
        offsets.append(offsets[-1] + len(pieces[-1]))
        if offsets[-1] == wanted:
            break
    tokens, ends = np.concatenate(pieces), np.array(offsets, np.int64)
    return dataclasses.replace(
        shard,
        tokens=tokens,
        offsets=ends,
        num_bytes=int(tokenizer.token_bytes[tokens].sum()),
        digest=hashlib.sha256(tokens.tobytes() + ends.tobytes()).hexdigest(),
    )
