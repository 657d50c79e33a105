"""The contiguous order against a literal walk of every lane through its own stretch of the text."""

import json

import numpy as np
import pytest

from bigjax import config
from bigjax.data import build
from bigjax.data.batches.lanes import build_lanes

BATCH, LENGTH = 4, 16


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    """Build the data of two files; keywords are fields of `data`, except rows."""
    folder = tmp_path_factory.mktemp("text")
    for name, count in (("a", 12), ("b", 9)):
        texts = [f"document {name} number {i}, " * (1 + i % 3) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = (f"jsonl:{folder}/a.jsonl", f"jsonl:{folder}/b.jsonl")

    def make(rows=slice(0, BATCH), **data):
        cfg = config.replace(
            config.Config(),
            data={"sources": sources, "seq_len": LENGTH, "holdout": 0.4, "order": "contiguous", **data}
            | {"cache_dir": str(folder / "cache")},
            train={"global_batch_size": BATCH},
        )
        return build(cfg, rows)

    return make


def walks(counts: list[int], lanes: int, steps: int) -> list[list[tuple[int, int]]]:
    """Return (source, row) of every lane and step, by walking."""
    every = [(source, row) for source, count in enumerate(counts) for row in range(count)]
    stretches = [every[len(every) * i // lanes : len(every) * (i + 1) // lanes] for i in range(lanes)]
    return [[stretch[t % len(stretch)] for t in range(steps)] for stretch in stretches]


@pytest.mark.parametrize(("counts", "lanes"), [([10], 4), ([7, 5, 3], 4), ([3, 1], 3), ([5], 1)])
def test_order_is_the_walk(counts, lanes):
    order, steps = build_lanes(counts, lanes), 12
    expected = walks(counts, lanes, steps)
    drawn = np.zeros(len(counts), int)
    for k in range(steps * lanes):
        assert order.drawn(k) == drawn.tolist()
        source, epoch, row = order.locate(np.array([order.id_at(k)]))
        step, lane = divmod(k, lanes)
        assert (source[0], row[0]) == expected[lane][step]
        assert epoch[0] == expected[lane][:step].count(expected[lane][step])
        drawn[source[0]] += 1


@pytest.mark.parametrize("document_mask", [True, False])
def test_continues_says_where_the_text_goes_on(data_of, document_mask):
    train = data_of(document_mask=document_mask).train
    lengths = [len(source) for source in train.sources]
    expected, steps = walks(lengths, BATCH, 40), 40
    seen = set()
    for step in range(steps):
        batch = train.batch(step)
        for lane in range(BATCH):
            source, row = expected[lane][step]
            shard = train.sources[source].shard
            start = row * LENGTH
            np.testing.assert_array_equal(
                batch.arrays["tokens"][lane][: len(shard.tokens[start : start + LENGTH])],
                shard.tokens[start : start + LENGTH][:LENGTH],
            )
            goes_on = step > 0 and expected[lane][step - 1] == (source, row - 1)
            opens = document_mask and start in shard.offsets
            assert batch.arrays["continues"][lane] == (goes_on and not opens), (step, lane)
            seen.add(bool(batch.arrays["continues"][lane]))
    assert seen == {True, False}


def test_processes_and_resumed_runs_see_the_same(data_of):
    whole, half = data_of().train, data_of(rows=slice(2, 4)).train
    with whole.batches(5) as batches:
        for step in range(5, 8):
            batch, alone, part = next(batches), whole.batch(step), half.batch(step)
            np.testing.assert_array_equal(batch.ids, alone.ids)
            np.testing.assert_array_equal(batch.ids[2:], part.ids)
            for name, x in batch.arrays.items():
                np.testing.assert_array_equal(x, alone.arrays[name])
                np.testing.assert_array_equal(x[2:], part.arrays[name])
    whole.check(json.loads(json.dumps(whole.state(7))))
    assert sum(source["rows"] for source in whole.state(7)["sources"]) == 7 * BATCH


def test_nothing_continues_a_batch_that_was_left_out(data_of):
    train = data_of(document_mask=False).train.leaving_out([3])
    assert train.batch(2).arrays["continues"].any()
    assert not train.batch(3).arrays["continues"].any()
    assert train.batch(4).arrays["continues"].any()


def test_evaluation_reads_every_row_once_along_its_lanes(data_of):
    held_out = data_of().eval
    assert held_out is not None
    total = sum(map(len, held_out.sources))
    batches = list(held_out.batches())
    assert len(batches) == len(held_out)
    ids = np.stack([batch.ids for batch in batches])
    assert sorted(ids[ids >= 0].tolist()) == list(range(total))
    for step, lane in np.ndindex(*ids.shape):
        if ids[step, lane] < 0:
            assert not batches[step].arrays["weights"][lane].any()
        elif step:
            assert ids[step, lane] == ids[step - 1, lane] + 1
        else:
            assert batches[0].arrays["continues"][lane] == 0


def test_the_shuffled_order_has_no_lanes(data_of):
    assert "continues" not in data_of(order="shuffled").train.batch(0).arrays
