"""Packing: rows give back the stream, and masks follow the documents."""

import numpy as np
import pytest

from bigjax.data.rows.packing import num_rows, pack_rows


def stream(lengths, seed=0):
    """Random tokens, all different from 0, in documents of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.random.default_rng(seed).integers(1, 60_000, offsets[-1]).astype(np.uint16)
    return tokens, offsets


def expected_row(tokens, offsets, row, seq_len):
    """The definition, one token at a time."""
    document = np.searchsorted(offsets, np.arange(len(tokens)), side="right") - 1
    out = {name: np.zeros(seq_len) for name in ("tokens", "targets", "weights", "segments", "positions")}
    segment = 0
    for column in range(seq_len):
        at = row * seq_len + column
        if at < len(tokens):
            new = column == 0 or document[at] != document[at - 1]
            segment += new
            out["tokens"][column] = tokens[at]
            out["segments"][column] = segment
            out["positions"][column] = 0 if new else out["positions"][column - 1] + 1
        if at + 1 < len(tokens):
            out["targets"][column] = tokens[at + 1]
            out["weights"][column] = document[at] == document[at + 1]
    return out


LENGTHS = [[100], [1], [2], [7, 1, 1, 20, 3, 8], [8, 8, 8, 1], [9, 0, 0, 5], [1, 1, 1, 1, 1, 1, 1, 1, 1], [0, 4, 0]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("seq_len", [1, 4, 8])
def test_rows_follow_the_definition(lengths, seq_len):
    tokens, offsets = stream(lengths)
    rows = np.arange(num_rows(len(tokens), seq_len))
    packed = pack_rows(tokens, offsets, rows, seq_len, document_mask=True)
    for row in rows:
        for name, expected in expected_row(tokens, offsets, int(row), seq_len).items():
            np.testing.assert_array_equal(packed[name][row], expected, err_msg=name)
    assert {name: array.dtype.name for name, array in packed.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "weights": "float32",
        "segments": "int32",
        "positions": "int32",
    }


@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("num_tokens", [2, 31, 32, 33, 34, 64, 65, 1000])
def test_no_token_is_lost_or_repeated(num_tokens, document_mask):
    tokens, offsets = stream([num_tokens // 2, num_tokens - num_tokens // 2])
    packed = pack_rows(tokens, offsets, np.arange(num_rows(num_tokens, 32)), 32, document_mask)
    targets = packed["targets"].reshape(-1)
    np.testing.assert_array_equal(targets[: num_tokens - 1], tokens[1:])
    np.testing.assert_array_equal(packed["tokens"].reshape(-1)[: num_tokens - 1], tokens[:-1])
    weighted = targets[packed["weights"].reshape(-1) > 0]
    if document_mask:
        np.testing.assert_array_equal(weighted, np.delete(tokens, offsets[:-1]))
    else:
        np.testing.assert_array_equal(weighted, tokens[1:])
        assert set(packed) == {"tokens", "targets", "weights"}
    assert (len(packed["tokens"]) - 1) * 32 < num_tokens - 1, "no row is only padding"


def test_rows_in_any_order_and_past_the_end():
    tokens, offsets = stream([50, 3, 47])
    everything = pack_rows(tokens, offsets, np.arange(13), 8, True)
    chosen = np.array([12, 3, 3, 0])
    for name, array in pack_rows(tokens, offsets, chosen, 8, True).items():
        np.testing.assert_array_equal(array, everything[name][chosen])
    for array in pack_rows(tokens, offsets, np.array([14]), 8, True).values():
        assert not array.any()
