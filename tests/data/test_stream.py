"""The whole path from a config to batches: purity, shares, prefetch, state, evaluation, named errors."""

import json
import threading

import numpy as np
import pytest

from bigjax import config
from bigjax.data import DataError, build
from bigjax.data.sources import shakespeare


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two jsonl files: 60 short documents and 20 longer ones."""
    folder = tmp_path_factory.mktemp("text")
    short = [f"short document {i} " * 3 for i in range(60)]
    long = [f"a longer document, number {i}. " * 20 for i in range(20)]
    for name, texts in (("short", short), ("long", long)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def make(cache, files):
    """Build a small run; keywords are fields of `data`, except seed, batch, vocab and rows."""

    def build_run(*, seed=0, batch=8, vocab=256, rows=None, **data):
        fields = {"sources": (f"jsonl:{files}/short.jsonl", f"jsonl:{files}/long.jsonl"), "seq_len": 32, "holdout": 0.2}
        cfg = config.replace(
            config.Config(),
            data={**fields, "cache_dir": str(cache), **data},
            train={"seed": seed, "global_batch_size": batch},
            model={"vocab_size": vocab},
        )
        return build(cfg, rows or slice(0, batch))

    return build_run


def assert_same(first, second):
    assert first.step == second.step
    np.testing.assert_array_equal(first.ids, second.ids)
    assert set(first.arrays) == set(second.arrays)
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


def take(data, start, count):
    with data.train.batches(start) as batches:
        return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("weights", [(), (0.7, 0.3)])
def test_any_start_gives_the_same_batches(make, weights):
    data = make(weights=weights)
    run = take(data, 0, 40)
    assert [batch.step for batch in run] == list(range(40))
    for batch, again in zip(run[17:], take(make(weights=weights), 17, 23), strict=True):
        assert_same(batch, again)
    assert_same(data.train.batch(33), run[33])


@pytest.mark.parametrize("shares", [1, 2, 4])
def test_shares_make_up_the_global_batch(make, shares):
    whole = make().train
    size = 8 // shares
    parts = [make(rows=slice(i * size, (i + 1) * size)).train for i in range(shares)]
    for step in (0, 5, 100):
        batch, pieces = whole.batch(step), [part.batch(step) for part in parts]
        np.testing.assert_array_equal(np.concatenate([piece.ids for piece in pieces]), batch.ids)
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(np.concatenate([piece.arrays[name] for piece in pieces]), array)


def shards(rows):
    return [source.shard for source in rows.sources]


def test_an_epoch_holds_every_training_token_once(make):
    data = make(batch=5)
    total = sum(data.train.order.rows)
    batches = [data.train.batch(step) for step in range(-(-total // 5))]
    ids = np.concatenate([batch.ids for batch in batches])[:total]
    np.testing.assert_array_equal(np.sort(ids), np.arange(total))
    for name in ("tokens", "targets"):
        rows = np.concatenate([batch.arrays[name] for batch in batches])[:total]
        in_order = rows[np.argsort(ids)]
        start = 0
        for source, count in zip(data.train.sources, data.train.order.rows, strict=True):
            shard = source.shard
            num_targets = len(shard.tokens) - 1
            stream = in_order[start : start + count].reshape(-1)[:num_targets]
            np.testing.assert_array_equal(stream, shard.tokens[1:] if name == "targets" else shard.tokens[:-1])
            start += count
    weights = np.concatenate([batch.arrays["weights"] for batch in batches])[:total].sum()
    assert weights == sum(len(shard.tokens) - shard.num_documents for shard in shards(data.train))


def test_mixture_proportions_are_exact(make):
    train = make(weights=(0.75, 0.25), batch=4).train
    ids = np.concatenate([train.batch(step).ids for step in range(100)])
    assert np.bincount(train.order.locate(ids)[0]).tolist() == [300, 100]


def test_seeds_and_documents_masks_matter(make):
    first = make(seed=0).train.batch(0)
    assert not np.array_equal(first.ids, make(seed=1).train.batch(0).ids)
    assert set(first.arrays) == {"tokens", "targets", "weights", "segments", "positions"}
    assert set(make(document_mask=False).train.batch(0).arrays) == {"tokens", "targets", "weights"}


def test_leaving_ends_the_thread_and_errors_surface(make, monkeypatch):
    train = make().train
    before = threading.active_count()
    with pytest.raises(KeyError, match="stop"), train.batches(0) as batches:
        next(batches)
        raise KeyError("stop")
    assert threading.active_count() == before

    def broken(self, step):
        if step == 2:
            raise OSError("disk gone")
        return step

    monkeypatch.setattr(type(train), "batch", broken)
    with train.batches(0) as batches:
        assert [next(batches), next(batches)] == [0, 1]
        with pytest.raises(OSError, match="disk gone"):
            next(batches)
    assert threading.active_count() == before


def test_the_state_counts_and_guards(make, files, tmp_path):
    data = make(weights=(0.5, 0.5))
    state = json.loads(json.dumps(data.train.state(50)))
    assert state["next_step"] == 50
    assert [source["rows"] for source in state["sources"]] == [200, 200]
    for source, rows in zip(state["sources"], data.train.order.rows, strict=True):
        assert source["epoch"] == 200 // rows
        assert source["tokens"] == 200 * 32
    make(weights=(0.5, 0.5), rows=slice(4, 8), prefetch=1).train.check(state)

    for changed, message in (
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"batch": 4}, "global_batch_size was 8 and is 4"),
        ({"seq_len": 16}, "seq_len was 32 and is 16"),
        ({"document_mask": False}, "document_mask was True and is False"),
        ({"weights": (0.25, 0.75)}, r"shares was \[1, 1\] and is \[1, 3\]"),
        ({"holdout": 0.3}, "the tokens of .*short.* have changed"),
        ({"weights": (), "sources": (f"jsonl:{files}/short.jsonl",)}, "there were 2 sources and are 1"),
    ):
        with pytest.raises(DataError, match=message):
            make(**{"weights": (0.5, 0.5), **changed}).train.check(state)

    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("short", "long"):
        (moved / f"{name}.jsonl").write_bytes((files / f"{name}.jsonl").read_bytes())
    sources = (f"jsonl:{moved}/short.jsonl", f"jsonl:{moved}/long.jsonl")
    make(weights=(0.5, 0.5), sources=sources).train.check(state)
    with (moved / "long.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(DataError, match=r"the tokens of .*long\.jsonl"):
        make(weights=(0.5, 0.5), sources=sources).train.check(state)


def test_a_resumed_run_is_evaluated_on_what_it_was(make, tmp_path):
    text = tmp_path / "held_out.txt"
    text.write_text("what the run is evaluated on, " * 9)
    state = json.loads(json.dumps(make(eval_sources=(f"text:{text}",)).train.state(5)))
    make(eval_sources=(f"text:{text}",)).train.check(state)
    text.write_text("what it was not evaluated on, " * 9)
    with pytest.raises(DataError, match="the documents that are held out, or their split or tokenizer, have changed"):
        make(eval_sources=(f"text:{text}",)).train.check(state)
    del state["held_out"]  # as in checkpoints of runs that did not keep it
    make(eval_sources=(f"text:{text}",)).train.check(state)


def test_batches_left_out_are_drawn_by_no_step(make):
    train = make(weights=(0.7, 0.3)).train
    left_out = [2, 3, 7, 0]
    numbers = [number for number in range(40) if number not in left_out]
    short = train.leaving_out(left_out)
    with short.batches(0) as batches:
        for step, number in enumerate(numbers):
            batch, expected = next(batches), train.batch(number)
            assert (batch.step, short.number(step)) == (step, number)
            np.testing.assert_array_equal(batch.ids, expected.ids)
            np.testing.assert_array_equal(batch.arrays["tokens"], expected.arrays["tokens"])
    state = json.loads(json.dumps(short.state(5)))
    assert state["left_out"] == [0, 2, 3, 7]
    assert sum(source["rows"] for source in state["sources"]) == 8 * numbers[5]
    short.check(state)
    short.leaving_out([*left_out, 9]).check(state)
    with pytest.raises(DataError, match=r"batches \[2, 3\] were left out and are not"):
        train.leaving_out([0, 7]).check(state)


@pytest.mark.parametrize("document_mask", [True, False])
def test_evaluation_sees_every_held_out_row_once(make, document_mask):
    data = make(document_mask=document_mask)
    held_out = data.eval
    batches = list(held_out.batches())
    assert len(batches) == len(held_out)
    ids = np.concatenate([batch.ids for batch in batches])
    assert ids[ids >= 0].tolist() == list(range(held_out.num_rows))
    assert (len(ids) - held_out.num_rows) < 8
    weights, lengths = (np.concatenate([batch.arrays[name] for batch in batches]) for name in ("weights", "bytes"))
    assert not weights[ids < 0].any()
    np.testing.assert_array_equal(lengths, weights)  # bytes: one each
    expected = sum(len(s.tokens) - (s.num_documents if document_mask else 1) for s in shards(held_out))
    assert weights.sum() == expected
    assert [batch.step for batch in held_out.batches(1)] == [0]
    shares = [make(document_mask=document_mask, rows=slice(7, 8)).eval, make(document_mask=document_mask).eval]
    for last, batch in zip(shares[0].batches(), shares[1].batches(), strict=True):
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(last.arrays[name], array[7:])
            assert last.arrays[name].dtype == array.dtype


def test_any_split_can_be_scored(make):
    data = make()
    assert data.score_set("eval") is data.eval
    weights = sum(batch.arrays["weights"].sum() for batch in data.score_set("train").batches())
    assert weights == sum(len(shard.tokens) - shard.num_documents for shard in shards(data.train))
    without = make(holdout=0.0)
    assert without.eval is None
    with pytest.raises(DataError, match=r"set data\.holdout above 0"):
        without.score_set("eval")


def test_shakespeare_end_to_end(make):
    data = make(sources=("shakespeare",), seq_len=128)
    summary = json.loads(json.dumps(data.describe()))
    assert summary["train"][0]["documents"] == 39
    assert summary["train"][0]["bytes"] + summary["eval"][0]["bytes"] == 5_057_198
    assert summary["rows_per_epoch"] == summary["train"][0]["rows"]
    assert shards(data.eval)[0].names() == list(shakespeare.HELD_OUT)


def test_bpe_end_to_end_scores_every_byte(make, files):
    data = make(sources=(f"jsonl:{files}/*.jsonl",), tokenizer="bpe:280", vocab=300)
    (shard,) = shards(data.eval)
    assert (shard.tokens[shard.offsets[1:] - 1] == data.tokenizer.eos_id).all()
    lengths = sum(batch.arrays["bytes"].sum() for batch in data.eval.batches())
    firsts = data.tokenizer.token_bytes[shard.tokens[shard.offsets[:-1]]].sum()
    assert lengths == shard.num_bytes - firsts, "every byte but those of the documents' first tokens is scored"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 10_000}, r"shorter than one batch: [\d,]+ tokens make \d+ rows .*global_batch_size=10000"),
        ({"vocab": 100}, r"has 256 ids, more than model\.vocab_size=100"),
        ({"rows": slice(4, 12)}, r"rows=slice\(4, 12, None\) is no contiguous part"),
    ],
)
def test_errors_give_the_numbers(make, fields, message):
    with pytest.raises(DataError, match=message):
        make(**fields)


def test_a_single_document_is_split_and_a_tiny_one_cannot_be(make, tmp_path):
    (tmp_path / "one.txt").write_text("one document " * 200)
    sizes = make(sources=(f"text:{tmp_path}/one.txt",), holdout=0.05).describe()
    assert sizes["train"][0]["bytes"] + sizes["eval"][0]["bytes"] == 200 * 13
    (tmp_path / "tiny.txt").write_text("x")
    with pytest.raises(DataError, match=r"has 0 documents .* set data\.eval_sources"):
        make(sources=(f"text:{tmp_path}/tiny.txt",), holdout=0.05)
    for holdout, few in ((1e-9, "eval"), (0.999999, "train")):
        sizes = make(holdout=holdout).describe()
        assert [source["documents"] for source in sizes[few]] == [1] * len(sizes["train"])
    assert make(sources=(f"text:{tmp_path}/one.txt",), holdout=0.0).eval is None
