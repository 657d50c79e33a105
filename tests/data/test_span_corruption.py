"""Corrupted spans and prefixes against the paper's example, its code's lengths, a literal loop, and statistics."""

import json
from dataclasses import replace as replaced
from pathlib import Path

import numpy as np
import pytest

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, replace
from bigjax.config.strict import from_dict
from bigjax.data import DataError, build
from bigjax.data.rows.pairs import Ends
from bigjax.data.rows.spans import corrupt, corrupted, prefixed, random_spans, span_counts, text_length
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.special import SENTINELS, sentinel_ids, special_ids
from bigjax.data.tokens.tokenizers import ByteTokenizer, JsonTokenizer
from bigjax.errors import ConfigError
from configs import t5

CFG = Config(
    model=ModelConfig(family="encdec", vocab_size=400, d_model=32, num_heads=2, positions="relative"),
    data=DataConfig(seq_len=64, target_len=16),
    train=TrainConfig(objective="span_corruption"),
)
ENDS = Ends(start=0, end=1, pad=0)
FIRST = 300
SENTINEL_IDS = list(range(FIRST, FIRST + SENTINELS))


def shard(*lengths: int) -> Shard:
    """Return documents of so many tokens, all different, from 2 on."""
    tokens = np.concatenate([2 + np.arange(length, dtype=np.uint16) for length in lengths])
    return Shard(Path(), tokens, np.concatenate([[0], np.cumsum(lengths)]), tokens.size, "made")


def test_the_example_of_the_paper():
    """Raffel et al. 2020, figure 2."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    hidden = np.isin(words, ["for", "inviting", "last"])
    names = dict(enumerate([*words, "<X>", "<Y>", "<Z>"]))
    read, written = corrupt(np.arange(len(words)), hidden, [len(words), len(words) + 1, len(words) + 2])
    assert " ".join(names[i] for i in read.tolist()) == "Thank you <X> me to your party <Y> week ."
    assert " ".join(names[i] for i in written.tolist()) == "<X> for inviting <Y> last <Z>"


@pytest.mark.parametrize(
    ("seq_len", "rate", "mean_span", "text", "written"),
    [
        # What the paper's code computes for its own settings (568 and 114 stand in its tests), then by hand:
        (512, 0.15, 3.0, 568, 114),
        (10, 0.5, 1.0, 9, 9),  # 9 tokens: 4 hidden in 4 spans, so 5 + 4 + 1 are read and 4 + 4 + 1 written
        (4, 0.15, 3.0, 3, 3),  # 3 tokens: 1 hidden, so 2 + 1 + 1 and 1 + 1 + 1
    ],
)
def test_lengths(seq_len, rate, mean_span, text, written):
    assert text_length(seq_len, rate, mean_span) == (text, written)


def by_definition(tokens: list[int], hidden: list[bool]) -> tuple[list[int], list[int]]:
    read, written, number = [], [], -1
    for i, (token, out) in enumerate(zip(tokens, hidden, strict=True)):
        starts = i > 0 and out and not hidden[i - 1]
        if starts:
            number += 1
            read.append(FIRST + number)
            written.append(FIRST + number)
        (written if out else read).append(token)
    return read, written


@pytest.mark.parametrize("length", [2, 3, 20, 71])
def test_rows_are_those_of_a_loop_over_the_tokens(length):
    """A random mask ends with a hidden span, so nothing follows the last one."""
    for seed in range(20):
        hidden = random_spans(np.random.default_rng(seed), length, 0.15, 3.0)
        tokens = 2 + np.arange(length)
        read, written = corrupt(tokens, hidden, SENTINEL_IDS)
        assert (read.tolist(), written.tolist()) == by_definition(tokens.tolist(), hidden.tolist())
        count, spans = span_counts(length, 0.15, 3.0)
        assert hidden.sum() == count and not hidden[0] and hidden[-1]
        assert np.sum(np.diff(hidden.astype(int)) == 1) == spans


def test_statistics_of_spans():
    """Of 568 tokens 85 are hidden in 28 spans; where they are cut is uniform over all ways to cut."""
    draws = [random_spans(np.random.default_rng(seed), 568, 0.15, 3.0) for seed in range(400)]
    edges = [np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]))) for mask in draws]
    lengths = np.concatenate([edge[1::2] - edge[::2] for edge in edges])
    assert span_counts(568, 0.15, 3.0) == (85, 28)
    assert len(lengths) == 28 * 400 and lengths.sum() == 85 * 400
    # A span is longer than n if n more of the 84 places are not among its 27 cuts next to it:
    # P(length = 1) = 27 / 84 for the first of 28 parts of 85, and so by symmetry for each.
    share, expected = np.mean(lengths == 1), 27 / 84
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(lengths)) ** 0.5
    # Every token but those near the ends is hidden equally often.
    often = np.mean(draws, axis=0)[60:500]
    assert abs(often.mean() - 0.15) < 0.01
    assert often.std() < 2 * (0.15 * 0.85 / 400) ** 0.5


def test_arrays_of_corrupted_rows():
    rows = corrupted(CFG, "made", shard(100, 1, 30), ENDS, None, SENTINEL_IDS)
    length, written = text_length(64, 0.15, 3.0)
    assert (length, written) == (70, 14)
    assert len(rows) == 4  # 70 + 30, 1 and 30 tokens
    numbers = np.array([0, 1, 2, 3, 9])
    batch = rows.arrays(numbers, numbers)
    assert {name: x.shape for name, x in batch.items()} == {
        "tokens": (5, 64), "segments": (5, 64), "inputs": (5, 16), "targets": (5, 16), "weights": (5, 16)
    }  # fmt: skip
    assert batch["segments"].sum(axis=1).tolist() == [64, 30 - 4 + 1 + 1, 0, 30 - 4 + 1 + 1, 0]
    assert batch["weights"].sum(axis=1).tolist() == [14, 4 + 1 + 1, 0, 4 + 1 + 1, 0]
    for b in (0, 1, 3):
        read = batch["tokens"][b][batch["segments"][b] > 0]
        written = batch["targets"][b][batch["weights"][b] > 0]
        assert read[-1] == written[-1] == ENDS.end
        assert batch["inputs"][b].tolist() == [ENDS.start, *batch["targets"][b, :-1].tolist()]
        spans = np.split(written[:-1], np.flatnonzero(written[:-1] >= FIRST))[1:]
        restored = [t for token in read[:-1] for t in (spans[token - FIRST][1:] if token >= FIRST else [token])]
        expected = {0: 2 + np.arange(70), 1: 72 + np.arange(30), 3: 2 + np.arange(30)}[b]
        assert restored == expected.tolist()


def test_rows_depend_on_seed_and_id_alone():
    rows = corrupted(CFG, "made", shard(200), ENDS, None, SENTINEL_IDS)
    first = rows.arrays(np.array([0, 1]), np.array([0, 1]))
    again = rows.arrays(np.array([1, 0]), np.array([1, 0]))
    later = rows.arrays(np.array([0, 1]), np.array([4, 5]))
    other = replaced(rows, seed=1).arrays(np.array([0, 1]), np.array([0, 1]))
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name][::-1])
    assert np.any(first["tokens"] != later["tokens"]) and np.any(first["tokens"] != other["tokens"])


def test_prefixes_are_cut_anywhere():
    cfg = replace(CFG, data={"seq_len": 12, "target_len": 9}, train={"objective": "prefix_lm"})
    rows = prefixed(cfg, "made", shard(10), ENDS, None)
    assert len(rows) == 2  # 9 tokens, then 1
    draws = 4000
    batch = rows.arrays(np.zeros(draws, np.int64), np.arange(draws))
    read, written = batch["segments"].sum(axis=1) - 1, batch["weights"].sum(axis=1).astype(int) - 1
    assert set(read + written) == {9}
    counts = np.bincount(read, minlength=9)[1:]
    assert counts.sum() == draws
    assert np.all(np.abs(counts / draws - 1 / 8) < 4 * (1 / 8 * 7 / 8 / draws) ** 0.5)
    for b in range(20):
        whole = [*batch["tokens"][b, : read[b]].tolist(), *batch["targets"][b, : written[b]].tolist()]
        assert whole == (2 + np.arange(9)).tolist()
    assert rows.arrays(np.array([1]), np.array([1]))["weights"].sum() == 0


def test_an_end_of_text_is_not_hidden():
    tokens = np.array([5, 6, 7, 8, 9, 2], np.uint16)  # ends with the tokenizer's own end
    rows = corrupted(CFG, "made", Shard(Path(), tokens, np.array([0, 6]), 6, "made"), Ends(0, 2, 0), 2, SENTINEL_IDS)
    batch = rows.arrays(np.array([0]), np.array([0]))
    assert (batch["tokens"] == 2).sum() == (batch["targets"] == 2).sum() == 1


def test_sentinels_are_the_tokenizer_s_own_or_come_after_all_roles():
    plain = ByteTokenizer()
    assert sentinel_ids(plain) == list(range(260, 360))
    assert special_ids(plain, ("pad", "mask")) == {"pad": 256, "mask": 259}
    pieces = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]]
    added = [{"id": 5 + n, "content": f"<extra_id_{99 - n}>"} for n in range(100)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    definition = {
        "version": "1.0",
        "added_tokens": [{**token, **flags} for token in added],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }
    t5_like = JsonTokenizer(json.dumps(definition), "</s>", "made")
    assert sentinel_ids(t5_like) == list(range(104, 4, -1))
    assert special_ids(t5_like, ("pad", "sep")) == {"pad": 0, "sep": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"target_len": 13}, "data.target_len=13 has no room for the 14 tokens that are written for data.seq_len=64"),
        ({"seq_len": 4096, "target_len": 4096, "mask_rate": 0.3}, "data.seq_len=4096 has 512 spans .* 100 sentinels"),
    ],
)
def test_lengths_that_do_not_fit_are_named(data, message):
    with pytest.raises(DataError, match=message):
        corrupted(replace(CFG, data=data), "made", shard(100), ENDS, None, SENTINEL_IDS)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"target_len": 0}}, "data.target_len=0: model.family='encdec' needs the length"),
        ({"data": {"target_len": 1}}, "data.target_len=1 has no room for a token before the end"),
        ({"train": {"loss_chunks": 3}}, "data.target_len=16 is not divisible by train.loss_chunks=3"),
        ({"train": {"objective": "causal_lm"}}, "trains model.family='decoder' or 'rnn', not 'encdec'"),
        ({"model": {"positions": "rotary"}}, "model.family='encdec' has model.positions='sinusoidal' or"),
        ({"model": {"sliding_window": 4}}, "attends to whole rows"),
        ({"model": {"encdec.relative_buckets": 7}}, "model.encdec.relative_buckets=7 is odd"),
        ({"model": {"encdec.relative_max_distance": 16}}, "model.encdec.relative_max_distance=16 must be above half"),
        ({"model": {"positions": "sinusoidal", "d_model": 33, "head_dim": 16}}, "d_model=33 is odd"),
        ({"model": {"family": "decoder"}}, "data.target_len=16 is for model.family='encdec', not 'decoder'"),
        ({"model": {"family": "encoder"}}, "model.positions='relative' is for model.family='encdec', not 'encoder'"),
    ],
)
def test_fields_that_clash_are_named(sections, message):
    with pytest.raises(ConfigError, match=message):
        replace(CFG, **sections)


@pytest.mark.exhaustive
def test_the_baselines_in_the_docstring_of_the_tiny_t5():
    """Bytes are ids below 256, what is above is sentinels and the end; nats per written token that is held out."""
    built = build(from_dict(Config, t5.get_config("tiny")), slice(0, 1))
    assert built.eval is not None
    train, held_out = built.train.sources[0], built.eval.sources[0]
    counted, scored = (
        rows.arrays(np.arange(min(len(rows), 20_000)), np.arange(min(len(rows), 20_000))) for rows in (train, held_out)
    )

    def written(arrays) -> tuple[np.ndarray, np.ndarray]:
        """Return what is written, and whether it follows a byte."""
        real = arrays["weights"] > 0
        return arrays["targets"][real], arrays["inputs"][real] < 256

    (seen, seen_inside), (tokens, inside) = written(counted), written(scored)
    counts = np.bincount(seen, minlength=360) + 1  # one more, for what is held out only
    assert np.mean(-np.log(counts[tokens] / counts.sum())) == pytest.approx(3.41, abs=0.005)
    byte, stop = counts[:256], np.mean(seen[seen_inside] >= 256)
    nats = np.where(tokens < 256, -np.log(byte[np.minimum(tokens, 255)] / byte.sum()), 0.0)
    nats -= np.where(inside, np.log(np.where(tokens < 256, 1 - stop, stop)), 0.0)
    assert np.mean(nats) == pytest.approx(2.85, abs=0.005)
