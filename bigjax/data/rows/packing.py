"""Packing: rows of equal length cut from the concatenated documents of a shard.

Row i of length S reads tokens [i*S, i*S + S) and predicts the same window shifted by one. Windows follow each other
without gap or overlap, so that every token but the first of the stream is a target exactly once. Only the last row is
padded.
"""

import numpy as np


def num_rows(num_tokens: int, seq_len: int) -> int:
    """Return how many rows a stream fills: its targets, one fewer than its tokens, over `seq_len`, rounded up."""
    return -(-max(num_tokens - 1, 0) // seq_len)


def pack_rows(
    tokens: np.ndarray, offsets: np.ndarray, rows: np.ndarray, seq_len: int, document_mask: bool
) -> dict[str, np.ndarray]:
    """Build rows of a stream.

    Args:
      tokens: (N,) the stream, any unsigned type.
      offsets: (documents + 1,) int64, where documents start; the last is N.
      rows: (B,) int64 row numbers below `num_rows(N, seq_len)`.
      seq_len: S.
      document_mask: whether documents are kept apart. If not, the stream counts as one document.

    Returns:
      `tokens` and `targets` (B, S) int32; `weights` (B, S) float32, 0 where the target is padding or, under
      `document_mask`, the first token of another document than its input's; and under `document_mask` `segments` (B, S)
      int32, which count the documents of a row from 1 with 0 for padding, and `positions` (B, S) int32, which restart
      at 0 where the row and every document starts. Padding is 0 in all arrays.
    """
    starts = rows.astype(np.int64) * seq_len
    stream_BT = np.zeros((len(rows), seq_len + 1), np.int32)  # T = S + 1
    for row, start in enumerate(starts.tolist()):
        window = tokens[start : start + seq_len + 1]
        stream_BT[row, : len(window)] = window
    opens_BT = _document_starts(offsets, starts, seq_len) if document_mask else None
    return packed(stream_BT, len(tokens) - starts, opens_BT)


def packed(stream_BT: np.ndarray, lengths: np.ndarray, opens_BT: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the arrays of `pack_rows`.

    Args:
      stream_BT: (B, S + 1) int32, the tokens of each row and the one after, 0 past the end.
      lengths: (B,) how many of them there are, or more.
      opens_BT: (B, S + 1) bool, where a document starts, first columns excepted; None where they are not told apart.
    """
    columns = np.arange(stream_BT.shape[1], dtype=np.int32)
    filled_BT = columns < lengths[:, None]
    arrays = {"tokens": stream_BT[:, :-1].copy(), "targets": stream_BT[:, 1:].copy()}
    if opens_BT is None:
        return arrays | {"weights": filled_BT[:, 1:].astype(np.float32)}
    latest_BS = np.maximum.accumulate(np.where(opens_BT[:, :-1], columns[:-1], 0), axis=1)
    filled_BS = filled_BT[:, :-1]
    return arrays | {
        "weights": (filled_BT[:, 1:] & ~opens_BT[:, 1:]).astype(np.float32),
        "segments": (np.cumsum(opens_BT[:, :-1], axis=1, dtype=np.int32) + 1) * filled_BS,
        "positions": (columns[:-1] - latest_BS) * filled_BS,
    }


def _document_starts(offsets: np.ndarray, starts: np.ndarray, seq_len: int) -> np.ndarray:
    """Mark, (B, S + 1) bool, where a document starts in the windows from `starts`, first columns excepted."""
    first = np.searchsorted(offsets, starts, side="right")
    counts = np.searchsorted(offsets, starts + seq_len, side="right") - first
    row = np.repeat(np.arange(len(starts)), counts)
    rank_in_row = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    column = offsets[first[row] + rank_in_row] - starts[row]
    opens_BT = np.zeros((len(starts), seq_len + 1), bool)
    opens_BT[row, column] = True
    return opens_BT
