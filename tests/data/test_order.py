"""The order of rows: exact proportions, every row once an epoch, random access."""

import numpy as np
import pytest

from bigjax.data.batches.order import build_order
from bigjax.data.batches.shares import drawn, mixture_shares


def ids(order, start, stop):
    return np.array([order.id_at(k) for k in range(start, stop)])


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((0.7, 0.3), (7, 3)),
        ((1.0,), (1,)),
        ((2.0, 4.0), (1, 2)),
        ((0.1, 0.2, 0.7), (1, 2, 7)),
        ((1e-05, 1.0), (1, 100000)),
    ],
)
def test_weights_become_exact_shares(weights, shares):
    assert mixture_shares(weights) == shares


def test_counts_rise_one_at_a_time_and_stay_in_proportion():
    shares = (7, 2, 11)
    previous = drawn(0, shares)
    assert previous == [0, 0, 0]
    for k in range(1, 101):
        counts = drawn(k, shares)
        assert sorted(np.subtract(counts, previous)) == [0, 0, 1]
        assert all(abs(count - k * share / 20) < 2 for count, share in zip(counts, shares, strict=True))
        previous = counts
    assert previous == [35, 10, 55]
    assert drawn(20 * 10**15, shares) == [7 * 10**15, 2 * 10**15, 11 * 10**15]


@pytest.mark.parametrize("rows", [(1,), (37,), (5, 1, 30)])
def test_every_row_once_an_epoch_and_epochs_differ(rows):
    order, total = build_order(rows, (), seed=3), sum(rows)
    epochs = [ids(order, epoch * total, (epoch + 1) * total) for epoch in range(3)]
    for epoch, seen in enumerate(epochs):
        np.testing.assert_array_equal(np.sort(seen), np.arange(total) + epoch * total)
        source, located_epoch, row = order.locate(seen)
        assert (located_epoch == epoch).all()
        np.testing.assert_array_equal(np.bincount(source, minlength=len(rows)), rows)
        assert (row < np.array(rows)[source]).all()
    if total > 1:
        assert not np.array_equal(epochs[0], epochs[1] - total)


def test_sources_repeat_at_their_own_pace():
    order = build_order((10, 40), (0.5, 0.5), seed=0)
    source, epoch, row = order.locate(ids(order, 0, 80))
    np.testing.assert_array_equal(np.bincount(source), [40, 40])
    for repeat in range(4):
        assert sorted(row[(source == 0) & (epoch == repeat)]) == list(range(10))
    assert sorted(row[source == 1]) == list(range(40))
    assert (epoch[source == 1] == 0).all()


def test_seeds_share_no_epoch():
    """Grain alone would start seed 1 with the second epoch of seed 0."""
    rows = {seed: build_order((50,), (), seed) for seed in (0, 1)}
    epochs = [tuple(ids(order, 50 * e, 50 * e + 50) % 50) for order in rows.values() for e in range(4)]
    assert len(set(epochs)) == 8


def test_the_order_of_a_seed_never_changes():
    """Written down once: a change here changes every run, and makes checkpoints resume on other data."""
    order = build_order((10, 20), (0.5, 0.5), seed=0)
    assert ids(order, 0, 12).tolist() == [1, 19, 5, 22, 8, 27, 3, 16, 7, 29, 2, 26]
