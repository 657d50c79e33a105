"""Masked tokens: what is chosen, what it becomes, and that both depend on seed and row id alone."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data.rows.masking import MaskedText, Masking, choose, num_predictions, replace, row_generator
from bigjax.data.rows.windows import Windows
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.special import special_ids
from bigjax.data.tokens.tokenizers import ByteTokenizer

ROLES = ("pad", "cls", "sep", "mask")
LENGTHS = (50, 3, 31, 62)


def text(seq_len=32, seed=0, **data) -> MaskedText:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    shard = Shard(Path(), rng.integers(97, 123, offsets[-1]).astype(np.uint16), offsets, offsets[-1], "digest")
    cfg = Config(
        ModelConfig(family="encoder", vocab_size=260),
        DataConfig(seq_len=seq_len, **data),
        TrainConfig(seed=seed, objective="masked_lm"),
    )
    masking = Masking.build(cfg, ByteTokenizer(), special_ids(ByteTokenizer(), ROLES))
    return MaskedText.build(cfg, "text", shard, masking)


def test_special_tokens_come_after_the_vocabulary_and_keep_their_places():
    assert special_ids(ByteTokenizer(), ROLES) == {"pad": 256, "cls": 257, "sep": 258, "mask": 259}
    assert special_ids(ByteTokenizer(), ("sep", "cls")) == {"sep": 258, "cls": 257}


def test_windows_cover_each_document_and_never_two():
    windows = text().windows
    assert [len(windows[i]) for i in range(len(windows))] == [30, 20, 3, 30, 1, 30, 30, 2]
    np.testing.assert_array_equal(np.concatenate([windows[i] for i in range(8)]), windows.shard.tokens)
    assert len(windows[8]) == 0


def test_rows_restore_to_the_text_and_mask_only_text():
    rows = text()
    numbers = np.arange(len(rows) + 1)
    arrays = rows.arrays(numbers, numbers)
    assert {name: (x.shape, x.dtype.name) for name, x in arrays.items()} == {
        "tokens": ((9, 32), "int32"),
        "segments": ((9, 32), "int32"),
        "masked": ((9, 5), "int32"),
        "targets": ((9, 5), "int32"),
        "weights": ((9, 5), "float32"),
    }
    assert num_predictions(32, 0.15) == 5  # 4.8
    for b in range(len(rows)):
        piece, restored = rows.windows[b], arrays["tokens"][b].copy()
        real = arrays["weights"][b] > 0
        assert real.sum() == max(1, round(0.15 * len(piece)))
        restored[arrays["masked"][b][real]] = arrays["targets"][b][real]
        assert restored.tolist() == [257, *piece.tolist(), 258, *[256] * (30 - len(piece))]
        assert arrays["segments"][b].sum() == len(piece) + 2
    assert (arrays["tokens"][8] == 256).all()
    assert not arrays["segments"][8].any()
    assert not arrays["weights"][8].any()


def test_masks_depend_on_seed_and_id_alone():
    rows, three = text(), np.array([0, 3, 5])
    first = rows.arrays(three, np.array([10, 13, 15]))
    alone = rows.arrays(three[1:2], np.array([13]))
    for name in first:
        np.testing.assert_array_equal(first[name][1:2], alone[name])
    next_epoch = rows.arrays(three, np.array([110, 113, 115]))
    assert not np.array_equal(first["masked"], next_epoch["masked"])
    assert not np.array_equal(first["masked"], text(seed=1).arrays(three, np.array([10, 13, 15]))["masked"])


def test_eighty_ten_ten():
    """Of chosen tokens 80 % become the mask, 10 % a random one and 10 % stay (Devlin et al. 2019, appendix A.1)."""
    tokens, ordinary = np.full(64, 7, np.int32), np.arange(20, 120, dtype=np.int32)
    kinds = np.zeros(3, int)
    for row in range(2000):
        rng = row_generator(0, row)
        chosen = choose(rng, tokens, 0.15, 10, None)
        assert len(chosen) == 10
        assert len(set(chosen.tolist())) == 10
        now = replace(rng, tokens, chosen, 3, ordinary)[chosen]
        kinds += [(now == 3).sum(), (now >= 20).sum(), (now == 7).sum()]
    assert stats.chisquare(kinds, np.array([0.8, 0.1, 0.1]) * kinds.sum()).pvalue > 1e-3


def test_every_position_is_chosen_equally_often():
    tokens, counts = np.zeros(40, np.int32), np.zeros(40)
    for row in range(3000):
        counts[choose(row_generator(1, row), tokens, 0.15, 6, None)] += 1
    # Without replacement the variance is smaller than a multinomial's, so the test errs on the safe side.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_whole_words_are_masked_together():
    starts = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1], bool)
    word = np.cumsum(starts)
    for row in range(200):
        chosen = choose(row_generator(2, row), np.zeros(20, np.int32), 0.3, 6, starts)
        assert 0 < len(chosen) <= 6
        for one in set(word[chosen].tolist()):
            assert set(np.flatnonzero(word == one).tolist()) <= set(chosen.tolist())


@pytest.mark.parametrize("whole", [False, True])
def test_the_option_reaches_the_rows(whole):
    rows = text(whole_word_masking=whole)
    assert rows.identity["whole_word_masking"] is whole
    assert (rows.masking.word_starts is not None) is whole
    assert Windows(rows.windows.shard, 7)[0].tolist() == rows.windows.shard.tokens[:7].tolist()


ENGLISH = "The quick brown fox jumps over the lazy dog and runs into a large forest at the end of our valley. "
WITHOUT_SPACES = {
    "Chinese": "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "DNA": "GATTACACCTGAGGCATTCAGGATCCAAGCTTGCATGCCTGCAGGTCGACTCTAGAGGATC",
}


@pytest.mark.parametrize("length", [30, 126, 510])
@pytest.mark.parametrize("kind", [*WITHOUT_SPACES, "English", "both"])
def test_whole_words_are_masked_at_the_same_rate_in_every_script(kind, length):
    """Devlin et al. 2019, section 3.1, hide 15 % of the tokens "at random", so whatever word they belong to."""
    foreign = WITHOUT_SPACES.get(kind, WITHOUT_SPACES["Chinese"])
    text = {"English": ENGLISH, "both": f"{ENGLISH}{foreign}. "}.get(kind, foreign)
    tokens = ByteTokenizer().encode(text * 20)[:length]
    starts, most, rows = ByteTokenizer().word_starts[tokens], num_predictions(length + 2, 0.15), 1500
    counts = np.zeros(length)
    for row in range(rows):
        chosen = choose(row_generator(3, row), tokens, 0.15, most, starts)
        assert 0 < len(chosen) <= num_predictions(length, 0.15)
        counts[chosen] += 1
    ascii_only, rates = tokens < 128, counts / rows
    # Of short rows the number wanted, 4 of 30, is what it is rounded to; what does not fit any more is left out.
    wanted = num_predictions(length, 0.15) / length
    for part in (ascii_only, ~ascii_only):
        if part.any():
            assert 0.85 * wanted < rates[part].mean() < 1.15 * wanted


def test_a_word_as_long_as_the_row_never_leaves_a_row_without_predictions():
    for length in range(1, 40):
        chosen = choose(row_generator(4, length), np.zeros(length, np.int32), 0.15, 6, np.arange(length) == 0)
        assert len(chosen) == min(6, num_predictions(length, 0.15))
