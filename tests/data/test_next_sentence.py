"""Pairs of texts: what they are made of, half of them together, and a pure function of seed and row id."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data import DataError
from bigjax.data.rows.masking import Masking
from bigjax.data.rows.sentence_pairs import SentencePairs
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.special import special_ids
from bigjax.data.tokens.tokenizers import ByteTokenizer

SEQ_LEN = 32
LENGTHS = (200, 3, 131, 62, 30)
PAD, CLS, SEP, MASK = 256, 257, 258, 259


def pairs(seed=0, lengths=LENGTHS) -> SentencePairs:
    """Pairs of documents of which each token says the document: 10 d + 97 and up, a space at every fourth place."""
    documents = [(10 * d + 97 + np.arange(n) % 10) * (np.arange(n) % 4 > 0) for d, n in enumerate(lengths)]
    tokens = np.concatenate([np.where(one == 0, 32, one) for one in documents]).astype(np.uint16)
    shard = Shard(Path(), tokens, np.concatenate([[0], np.cumsum(lengths)]), len(tokens), "digest")
    cfg = Config(
        ModelConfig(family="encoder", head="lm_next_sentence", vocab_size=260, token_types=2),
        DataConfig(seq_len=SEQ_LEN),
        TrainConfig(seed=seed, objective="masked_lm_next_sentence"),
    )
    roles = special_ids(ByteTokenizer(), ("pad", "cls", "sep", "mask"))
    masking = Masking.build(cfg, ByteTokenizer(), roles)
    return SentencePairs.build(cfg, "text", shard, masking, ByteTokenizer().word_starts)


def document(tokens: np.ndarray) -> int:
    """Return the one document that all letters of some tokens are of."""
    (number,) = set(((tokens[tokens != 32] - 97) // 10).tolist())
    return number


def restored(arrays: dict[str, np.ndarray], b: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two parts of a row with what was hidden put back."""
    tokens, real = arrays["tokens"][b].copy(), arrays["weights"][b] > 0
    tokens[arrays["masked"][b][real]] = arrays["targets"][b][real]
    first, second = np.flatnonzero(tokens == SEP).tolist()
    assert tokens[0] == CLS
    assert arrays["segments"][b].tolist() == [1] * (second + 1) + [0] * (SEQ_LEN - second - 1)
    assert arrays["types"][b].tolist() == [0] * (first + 1) + [1] * (second - first) + [0] * (SEQ_LEN - second - 1)
    assert (tokens[second + 1 :] == PAD).all()
    return tokens[1:first], tokens[first + 1 : second]


def test_a_pair_is_a_piece_cut_in_two_or_of_two_documents():
    rows = pairs()
    for epoch in range(20):
        numbers = np.arange(len(rows))
        arrays = rows.arrays(numbers, numbers + epoch * len(rows))
        assert arrays["next_weights"].tolist() == [1] * len(rows)
        for b in range(len(rows)):
            piece, (first, second) = rows.windows[b], restored(arrays, b)
            assert len(first) >= 1
            assert first.tolist() == piece[: len(first)].tolist()
            if arrays["next_targets"][b]:
                others = second[second != 32]
                assert not len(others) or document(others) != rows.windows.document(b)
                assert len(second) <= SEQ_LEN - 3 - len(first)
            else:
                assert second.tolist() == piece[len(first) :].tolist()
                assert len(second)


def test_half_of_the_pairs_belong_together_and_lengths_do_not_tell_which():
    rows = pairs()
    row = np.zeros(4000, np.int64)  # a full piece of a long document
    arrays = rows.arrays(row, np.arange(4000))
    apart = int(arrays["next_targets"].sum())
    assert stats.binomtest(apart, 4000, 0.5).pvalue > 1e-3
    together, separate = (arrays["types"][arrays["next_targets"] == kind].sum(axis=1) for kind in (0, 1))
    # A document of 3 tokens, drawn once in 75 times, may be shorter than what is wanted.
    assert stats.ks_2samp(together, separate).statistic < 0.1


def test_pairs_depend_on_seed_and_id_alone():
    rows, three = pairs(), np.array([0, 3, 5])
    first = rows.arrays(three, np.array([10, 13, 15]))
    alone = rows.arrays(three[1:2], np.array([13]))
    for name in first:
        np.testing.assert_array_equal(first[name][1:2], alone[name])
    for other in (rows.arrays(three, np.array([110, 113, 115])), pairs(seed=1).arrays(three, np.array([10, 13, 15]))):
        assert not np.array_equal(first["tokens"], other["tokens"])


def test_a_row_past_the_end_is_padding():
    rows = pairs()
    arrays = rows.arrays(np.array([len(rows)]), np.array([7]))
    assert not any(arrays[name].any() for name in ("segments", "types", "weights", "next_weights"))


def test_one_document_is_not_enough():
    with pytest.raises(DataError, match="'text' is one document, but pairs that do not belong together need a second"):
        pairs(lengths=(50,))
