"""Mixtures that change over a run: the counts that were asked for, the same after a resume or a rollback."""

import json

import numpy as np
import pytest

from bigjax import config, data
from bigjax.config import Config, strict
from bigjax.config.mixture import Knot, knots
from bigjax.data import DataError
from bigjax.data.batches import evalset
from bigjax.data.batches.mixture import build_mixture
from bigjax.errors import ConfigError
from bigjax.run.rows import read_rows
from experiments import train

NO_CAPS = (None, None)


def rows_of_ten(batch: int) -> int:
    return 10 * batch


def rises_by_one(mixture, rows):
    counts = np.array([mixture.drawn(k) for k in range(rows + 1)])
    assert (counts.sum(axis=1) == np.arange(rows + 1)).all()
    steps = np.diff(counts, axis=0)
    assert (np.sort(steps, axis=1)[:, :-1] == 0).all() and (steps.max(axis=1) == 1).all()
    return counts


def test_stages_have_their_shares_exactly():
    mixture = build_mixture((3, 1), [Knot(10, (1, 1)), Knot(20, (0, 1))], False, NO_CAPS, rows_of_ten)
    counts = rises_by_one(mixture, 400)
    assert counts[100].tolist() == [75, 25]
    assert (counts[200] - counts[100]).tolist() == [50, 50]
    assert (counts[400] - counts[200]).tolist() == [0, 200]


@pytest.mark.parametrize("ends", [((1, 0), (0, 1)), ((0.2, 0.8), (0.7, 0.3))])
def test_a_linear_change_is_the_integral_of_the_shares(ends):
    """Of a share that goes evenly from a to b over N rows, k rows have k a + k^2 (b - a) / 2N."""
    (a, _), (b, _) = ends
    mixture = build_mixture(ends[0], [Knot(200, ends[1])], True, NO_CAPS, rows_of_ten)
    counts = rises_by_one(mixture, 2500)
    k = np.minimum(np.arange(2501), 2000)
    expected = k * a + k**2 * (b - a) / (2 * 2000) + (np.arange(2501) - k) * b
    # A stage of 10 rows draws by its mean share, off by at most 10 |b - a| / 8 / 200 of a row. Counts are whole: they
    # are within a row of the exact ones at the ends of stages, and within another inside, where the first rounds up.
    assert np.abs(counts[:, 0] - expected).max() < 2.1
    assert np.abs(counts[::10, 0] - expected[::10]).max() <= 1


def test_a_linear_change_does_not_drift():
    """Rounding does not sum up: after many stages the counts are still as asked for."""
    mixture = build_mixture((1, 0), [Knot(1000, (0, 1))], True, NO_CAPS, lambda batch: 7 * batch)
    counts = np.array(mixture.drawn(7000))
    assert abs(counts[0] - 3500) <= 1


def test_a_source_is_read_as_often_as_it_may():
    mixture = build_mixture((1, 1, 2), [], False, (30, 70, None), rows_of_ten)
    counts = rises_by_one(mixture, 600)
    assert counts[120].tolist() == [30, 30, 60]
    assert counts[:, 0].max() == 30 and counts[:, 1].max() == 70
    assert counts[240].tolist() == [30, 70, 140] and mixture.end is None
    ended = build_mixture((1, 1), [], False, (30, 70), rows_of_ten)
    rises_by_one(ended, 100)
    assert ended.end == 100


def test_extreme_weights_draw_from_every_source():
    mixture = build_mixture((0.001, 0.999), [Knot(200, (0.999, 0.001))], False, NO_CAPS, rows_of_ten)
    assert rises_by_one(mixture, 4000)[[2000, 4000]].tolist() == [[2, 1998], [2000, 2000]]


@pytest.fixture
def make(tmp_path):
    for name, count in (("small", 30), ("large", 300)):
        texts = [f"{name} document {i} of its kind. " * 2 for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = (f"jsonl:{tmp_path}/small.jsonl", f"jsonl:{tmp_path}/large.jsonl")

    def build(*, steps=40, rows=slice(0, 8), **fields):
        fields = {"sources": sources, "seq_len": 16, "holdout": 0.2, "cache_dir": str(tmp_path / "cache"), **fields}
        mapping = {"model": {"vocab_size": 256, "num_layers": 1, "d_model": 16, "num_heads": 2}, "data": fields}
        return strict.from_dict(Config, mapping | {"train": {"steps": steps, "global_batch_size": 8}}), rows

    return build


def sources_of(stream, steps):
    return np.array([np.bincount(stream.order.locate(stream.batch(step).ids)[0], minlength=2) for step in steps])


CHANGES = {"weights": (1.0, 3.0), "later_weights": ("25%:1/1", "20:3/1"), "max_epochs": (2.0, 0.0)}


@pytest.mark.parametrize("change", ["stages", "linear"])
def test_a_run_is_the_same_for_any_start_and_any_processes(make, change):
    cfg, _ = make(**CHANGES, weight_change=change)
    whole = data.build(cfg, slice(0, 8)).train
    halves = [data.build(cfg, rows).train for rows in (slice(0, 4), slice(4, 8))]
    for step in (0, 9, 10, 19, 20, 39):
        parts = [half.batch(step) for half in halves]
        np.testing.assert_array_equal(whole.batch(step).ids, np.concatenate([part.ids for part in parts]))
    with whole.batches(17) as batches:
        np.testing.assert_array_equal(next(batches).ids, whole.batch(17).ids)
    # After a rollback the steps take later batches of the same order, and a resume knows.
    left = whole.leaving_out([12])
    np.testing.assert_array_equal(left.batch(12).ids, whole.batch(13).ids)
    left.check(left.state(30))
    whole.leaving_out([12]).check(left.state(13))
    other = data.build(
        make(**{**CHANGES, "later_weights": ("25%:1/2", "20:3/1")}, weight_change=change)[0], slice(0, 8)
    )
    with pytest.raises(DataError, match=r"mixture was '.* stages, sha256"):
        other.train.check(whole.state(30))


def test_counts_of_a_run_are_those_asked_for(make):
    cfg, _ = make(weights=(1.0, 3.0), later_weights=("25%:1/1", "20:3/1"))
    found = sources_of(data.build(cfg, slice(0, 8)).train, range(40))
    assert found[:10].sum(axis=0).tolist() == [20, 60]
    assert found[10:20].sum(axis=0).tolist() == [40, 40]
    assert found[20:].sum(axis=0).tolist() == [120, 40]


def test_a_longer_run_goes_on_where_stages_are_steps(make):
    def stream(steps, when):
        return data.build(make(steps=steps, weights=(1.0, 3.0), later_weights=(f"{when}:1/1",))[0], slice(0, 8)).train

    stream(80, "10").check(stream(40, "10").state(40))
    with pytest.raises(DataError, match="mixture was"):
        stream(80, "25%").check(stream(40, "25%").state(40))


def test_epochs_are_how_often_each_source_is_read(make):
    cfg, _ = make(epochs=(4.0, 1.0))
    stream = data.build(cfg, slice(0, 8)).train
    small, large = stream.order.rows
    assert stream.order.drawn(4 * small + large) == [4 * small, large]


def test_a_capped_source_is_left_out_and_the_end_of_all_is_said(make):
    cfg, _ = make(weights=(3.0, 1.0), max_epochs=(1.0, 0.0))
    stream = data.build(cfg, slice(0, 8)).train
    found = sources_of(stream, range(40))
    assert found[:, 0].sum() == stream.order.rows[0] < 240
    assert stream.state(40)["sources"][0]["rows"] == stream.order.rows[0]
    total = sum(stream.order.rows)
    with pytest.raises(
        DataError, match=rf"ends the data after {total:,} rows, which last for {total // 8} of train\.steps=1,000"
    ):
        data.build(make(steps=1000, max_epochs=(1.0, 1.0))[0], slice(0, 8))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"later_weights": ("half:1/1",)}, "'half:1/1', which is not WHEN:WEIGHT/WEIGHT"),
        ({"later_weights": ("50%:1",)}, "with 1 weights: give one for each of the 2 data.sources"),
        ({"later_weights": ("50%:0/0",)}, "but not all of them 0"),
        ({"later_weights": ("30:1/1", "20:1/2")}, "which is step 20: name later and later steps"),
        ({"later_weights": ("200%:1/1",)}, "which is step 80: name later"),
        ({"later_weights": ("10:-1/1",)}, "which is not WHEN"),
        ({"weight_change": "linear"}, "goes to data.later_weights, which is empty"),
        ({"weights": (1.0, 1.0), "epochs": (1.0, 2.0)}, "both say how much of each source"),
        ({"epochs": (1.0,)}, "data.epochs has 1 entries, but data.sources has 2"),
        ({"epochs": (1.0, 0.0)}, "must all be above 0: leave a source out"),
        ({"max_epochs": (1.0, -1.0)}, "must be 0, for no bound, or more"),
        ({"max_epochs": (1.0, 1.0), "order": "contiguous"}, "data.max_epochs=(1.0, 1.0) mix shuffled rows"),
    ],
)
def test_what_cannot_be_is_one_sentence(make, fields, said):
    with pytest.raises(ConfigError) as found:
        make(**fields)
    assert said in str(found.value)


def test_percentages_and_steps():
    assert knots(("12.5%:1/2e-1", "300:0/1"), 400) == (Knot(50, (1.0, 0.2)), Knot(300, (0.0, 1.0)))


def test_names_of_sources_are_short_and_differ():
    specs = (
        "text:corpus/en/*.txt",
        "jsonl:corpus/de.jsonl.gz",
        "tokens:s3://bucket/en/*.bin",
        "shakespeare",
        "text:*.txt",
    )
    assert evalset.names(specs) == ["en", "de", "en-2", "shakespeare", "text"]


@pytest.mark.exhaustive
def test_each_source_has_scores_of_its_own(make, tmp_path):
    """The loss of all is the mean of the sources' over their tokens."""
    cfg, _ = make(steps=2, eval_each=True)
    cfg = config.replace(cfg, log={"tensorboard": False, "plot": False})
    assert strict.fingerprint(cfg) == strict.fingerprint(config.replace(cfg, data={"eval_each": False}))
    assert train.run(cfg, tmp_path / "run") == 0
    row = next(row for row in read_rows(tmp_path / "run/metrics.jsonl") if "eval/loss" in row)
    tokens = [row[f"eval/{name}/tokens"] for name in ("small", "large")]
    losses = [row[f"eval/{name}/loss"] for name in ("small", "large")]
    assert sum(tokens) == row["eval/tokens"] and losses[0] != losses[1]
    assert np.dot(tokens, losses) / sum(tokens) == pytest.approx(row["eval/loss"], rel=1e-6)
    assert json.loads((tmp_path / "run/result.json").read_text())["eval_small/loss"] == losses[0]
