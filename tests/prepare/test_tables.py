"""Steps on tables against scikit-learn's transforms of the training side, and splits against what they promise."""

from collections import Counter

import numpy as np
import pytest
from sklearn import datasets, impute, preprocessing

from bigjax.errors import ConfigError
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Dropped
from bigjax.prepare.writing import SIDE
from tests.prepare.fitting import kept, through

_wine = datasets.load_wine()
WINE = [dict(zip(_wine.feature_names, row.tolist(), strict=True)) for row in _wine.data]
SPLIT = {"sides": {"share": 0.25}}


def column(records: list[dict], name: str, side: str | None = None) -> np.ndarray:
    return np.array([[r[name]] for r in records if side is None or r[SIDE] == side], dtype=float)


@pytest.mark.parametrize("kind, scaler", [
    ("standard", preprocessing.StandardScaler()),
    ("minmax", preprocessing.MinMaxScaler()),
    ("robust", preprocessing.RobustScaler()),
])  # fmt: skip
def test_scaling_is_that_of_the_training_side(kind, scaler):
    found = kept(through(WINE, ("sides", "scale"), scale={"columns": ("alcohol",), "kind": kind}, **SPLIT))
    before = [{**record, SIDE: after[SIDE]} for record, after in zip(WINE, found, strict=True)]
    scaler.fit(column(before, "alcohol", "train"))
    for side in ("train", "eval"):
        expected = scaler.transform(column(before, "alcohol", side))
        np.testing.assert_allclose(column(found, "alcohol", side), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent"])
def test_missing_numbers_are_filled_from_the_training_side(strategy):
    # As texts, as CSV has them, with several ways to say that there is none.
    marks = ("", "NA", "?", " ")
    records = [{"x": marks[i % 4] if i % 5 == 0 else str(i % 17), "y": i} for i in range(200)]
    found = kept(through(records, ("sides", "missing"), missing={"numbers": strategy, "indicator": True}, **SPLIT))
    given = [float("nan") if r["x"].strip() in ("", "NA", "?") else float(r["x"]) for r in records]
    train = np.array([[x] for x, r in zip(given, found, strict=True) if r[SIDE] == "train"])
    expected = impute.SimpleImputer(strategy=strategy).fit(train).transform(np.array(given)[:, None])
    np.testing.assert_allclose([[r["x"]] for r in found], expected)
    assert [r["x_missing"] for r in found] == np.isnan(given).astype(int).tolist()
    assert [r["y"] for r in found] == [r["y"] for r in records]


def test_records_without_a_value_are_dropped_where_asked():
    records = [{"x": None if i == 3 else i, "c": "" if i == 4 else "ab"[i % 2]} for i in range(10)]
    found = through(records, ("missing",), missing={"numbers": "drop", "texts": "drop"})
    assert [i for i, record in enumerate(found) if isinstance(record, Dropped)] == [3, 4]
    filled = kept(through(records, ("missing",)))
    assert (filled[3]["x"], filled[4]["c"]) == (5, "b")  # the median of the others, and the more frequent


def test_outliers_are_beyond_the_quartiles():
    values = [float(i) for i in range(100)] + [1000.0, -1000.0]
    records = [{"x": value} for value in values]
    found = through(records, ("outliers",), outliers={"columns": ("x",)})
    assert [i for i, record in enumerate(found) if isinstance(record, Dropped)] == [100, 101]
    low, high = np.quantile(values, (0.25, 0.75))
    clipped = kept(through(records, ("outliers",), outliers={"columns": ("x",), "action": "clip"}))
    assert clipped[100]["x"] == pytest.approx(high + 1.5 * (high - low))
    assert clipped[101]["x"] == pytest.approx(low - 1.5 * (high - low))
    # A held-out record is none that training could do without.
    late = [{"x": value, "t": i} for i, value in enumerate(values)]
    sides = {"by": "time", "column": "t", "share": 0.1}
    assert len(kept(through(late, ("sides", "outliers"), outliers={"columns": ("x",)}, sides=sides))) == 102


def test_categories_are_those_of_the_training_side():
    records = [{"c": "abca"[i % 4], "t": i} for i in range(40)] + [{"c": "new", "t": i} for i in range(40, 44)]
    sides = {"by": "time", "column": "t", "share": 0.1}
    found = kept(through(records, ("sides", "categories"), categories={"columns": ("c",)}, sides=sides))
    train = [[r["c"]] for r, after in zip(records, found, strict=True) if after[SIDE] == "train"]
    encoder = preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(train)
    assert [[r["c"]] for r in found] == encoder.transform([[r["c"]] for r in records]).astype(int).tolist()
    assert found[-1]["c"] == -1
    onehot = {"columns": ("c",), "kind": "onehot"}
    found = kept(through(records, ("sides", "categories"), categories=onehot, sides=sides))
    encoder = preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train)
    assert [r["c"] for r in found] == encoder.transform([[r["c"]] for r in records]).astype(int).tolist()
    rare = kept(through(records[:40] + [{"c": x, "t": 0} for x in "xy"], ("categories",),
                        categories={"columns": ("c",), "min_count": 5}))  # fmt: skip
    assert [r["c"] for r in rare[:4]] == [0, 1, 2, 0] and [r["c"] for r in rare[-2:]] == [3, 3]


def sides_of(records: list[dict], **options) -> list[str]:
    return [record[SIDE] for record in kept(through(records, ("sides",), sides=options))]


RECORDS = [{"g": f"g{i % 23}", "t": (i * 37) % 100, "y": "ab"[i % 5 == 0]} for i in range(300)]


def test_a_split_by_record_has_the_share_and_the_seed():
    found = sides_of(RECORDS, share=0.2)
    assert Counter(found) == {"train": 240, "eval": 60}
    assert found == sides_of(RECORDS, share=0.2)


def test_a_group_is_on_one_side_or_in_one_fold():
    for options in ({"share": 0.2}, {"share": 0.2, "stratify": "y"}, {"folds": 4}, {"folds": 4, "stratify": "y"}):
        found = sides_of(RECORDS, by="group", column="g", **options)
        assert len({(r["g"], side) for r, side in zip(RECORDS, found, strict=True)}) == 23
        assert len(set(found)) == options.get("folds", 2)


def test_all_held_out_is_later_than_all_that_is_trained_on():
    found = sides_of(RECORDS, by="time", column="t", share=0.2)
    times = {side: [r["t"] for r, s in zip(RECORDS, found, strict=True) if s == side] for side in ("train", "eval")}
    assert max(times["train"]) < min(times["eval"])
    assert len(times["eval"]) == 60
    dated = [{"t": f"2024-{r['t'] % 12 + 1:02d}"} for r in RECORDS]
    folds = sides_of(dated, by="time", column="t", folds=3)
    first = {fold: sorted(r["t"] for r, s in zip(dated, folds, strict=True) if s == fold) for fold in set(folds)}
    assert first["fold0"][-1] < first["fold1"][0] and first["fold1"][-1] < first["fold2"][0]


def test_a_stratified_split_has_the_same_shares():
    for options in ({"share": 0.2}, {"folds": 5}):
        found = sides_of(RECORDS, stratify="y", **options)
        for side in set(found):
            labels = [r["y"] for r, s in zip(RECORDS, found, strict=True) if s == side]
            assert labels.count("b") / len(labels) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("steps, options, said", [
    (("scale", "sides"), {"scale": {"columns": ("t",)}}, "scale would learn from held-out records"),
    (("sides", "scale"), {"scale": {"columns": ("t",)}, "sides": {"folds": 3}}, "prepare folds alone"),
    (("scale",), {}, "scale.columns is empty"),
    (("scale",), {"scale": {"columns": ("no",)}}, "there is no column 'no' but g, t, y"),
    (("scale",), {"scale": {"columns": ("y",)}}, "column 'y' holds 'b', not a number"),
    (("sides",), {"sides": {"by": "group"}}, "needs sides.column"),
    (("sides",), {"sides": {"folds": 1}}, "no split"),
    (("sides",), {"sides": {"folds": 400}}, "cannot be split so"),
    (("sides",), {"sides": {"stratify": "g", "share": 0.01}}, "cannot be split so"),
    (("sides",), {"sides": {"by": "time", "column": "t", "stratify": "y"}}, "the times decide"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(steps, options, said):
    with pytest.raises((ConfigError, PrepareError), match=said):
        through(RECORDS, steps, **options)
