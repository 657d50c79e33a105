"""An excerpt of a run's text: a few rows an epoch, of several documents each, and all else as it was."""

import dataclasses
import json

import numpy as np
import pytest

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.preflight.resume.excerpt import FirstRows, excerpt

SEQ_LEN, BATCH = 32, 8


@pytest.fixture
def sources(tmp_path) -> tuple[str, str]:
    """Two sources: 5 documents of 4,000 bytes, and 200 of 20."""
    for name, (count, length) in {"long": (5, 4000), "short": (200, 20)}.items():
        texts = [chr(97 + i % 26) * length for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"jsonl:{tmp_path}/long.jsonl", f"jsonl:{tmp_path}/short.jsonl"


def build(sources, tmp_path, **fields) -> tuple[data.TextData, Config]:
    chosen = DataConfig(sources=sources, seq_len=SEQ_LEN, holdout=0.0, cache_dir=str(tmp_path / "cache"), **fields)
    cfg = Config(ModelConfig(vocab_size=256), chosen, TrainConfig(global_batch_size=BATCH))
    return data.build(cfg, slice(0, BATCH)), cfg


def test_each_source_gives_its_share_and_at_least_one_row(sources, tmp_path):
    text, _ = build(sources, tmp_path, weights=(3.0, 1.0))
    found = excerpt(text, (3.0, 1.0), 20).train
    assert found.order.rows == (15, 5)
    assert found.order.shares == (3, 1)
    assert excerpt(text, (99.0, 1.0), 20).train.order.rows == (20, 1)
    by_size = excerpt(build(sources, tmp_path)[0], (), 25).train
    assert by_size.order.rows == by_size.order.shares == (21, 4)


def test_rows_hold_the_beginnings_of_documents_in_their_order(sources, tmp_path):
    text, _ = build(sources, tmp_path)
    long, short = (source.shard for source in excerpt(text, (1.0, 1.0), 10).train.sources)
    # 5 rows of 32 and one token more; no document gives more than 3/2 of a row.
    np.testing.assert_array_equal(long.tokens, np.repeat(np.arange(97, 101), 48)[: 5 * SEQ_LEN + 1])
    np.testing.assert_array_equal(long.offsets, [0, 48, 96, 144, 161])
    np.testing.assert_array_equal(short.tokens, np.repeat(np.arange(97, 106), 20)[: 5 * SEQ_LEN + 1])
    np.testing.assert_array_equal(short.offsets, [*range(0, 161, 20), 161])
    assert long.digest != text.train.sources[0].digest
    assert long.digest == excerpt(text, (1.0, 1.0), 10).train.sources[0].digest


def test_nothing_else_changes_and_a_short_source_stays_whole(sources, tmp_path):
    text, _ = build(sources, tmp_path)
    found = excerpt(text, (), 10**6)
    assert found.eval is text.eval and found.tokenizer is text.tokenizer
    kept = dataclasses.replace(found.train, sources=text.train.sources, order=text.train.order)
    assert kept == text.train
    for source, whole in zip(found.train.sources, text.train.sources, strict=True):
        np.testing.assert_array_equal(source.shard.tokens, whole.shard.tokens)
        np.testing.assert_array_equal(source.shard.offsets, whole.shard.offsets)
    for step in (0, 70, 200):
        here, there = found.train.batch(step), text.train.batch(step)
        np.testing.assert_array_equal(here.ids, there.ids)
        for name, array in there.arrays.items():
            np.testing.assert_array_equal(here.arrays[name], array)


def test_of_rows_that_are_not_packed_the_first_are_taken():
    class Numbers:
        """Ten rows that hold their own numbers."""

        spec, digest, sizes, identity = "numbers", "d", {"documents": 10}, {"seq_len": 1}

        def __len__(self):
            return 10

        def arrays(self, rows, ids):
            return {"tokens": rows[:, None], "ids": ids[:, None]}

    found = FirstRows(Numbers(), 4)
    assert (len(found), found.spec, found.sizes, found.identity) == (4, "numbers", {"documents": 10}, {"seq_len": 1})
    assert found.digest not in ("d", FirstRows(Numbers(), 5).digest)
    arrays = found.arrays(np.array([0, 3, 1, 4]), np.array([5, 6, 7, 8]))
    np.testing.assert_array_equal(arrays["tokens"][:, 0], [0, 3, 1, 10])  # one past the end stays past the end
    np.testing.assert_array_equal(arrays["ids"][:, 0], [5, 6, 7, 8])
