"""A task that is not text: numbers from files of every kind, their scale, and a run from table to figures."""

import csv
import json
from typing import Any

import numpy as np
import pytest
from sklearn import datasets, linear_model, metrics, preprocessing

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, replace
from bigjax.config.strict import ConfigError
from bigjax.data import DataError
from bigjax.data.rows.table import Scaler, numbers
from bigjax.data.sources.opening import canonical, document_fraction, open_source, split_sources
from bigjax.tasks import regression
from experiments import train
from tests import commands

RECORDS = [{"age": age, "weight": age / 2 + 0.25 * (age % 3), "risk": 3.0 * age - 7} for age in range(20, 60)]


def write(folder, kind, records=RECORDS):
    path = folder / f"table.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), path)
    return f"{kind}:{path}"


def config(source, cache, features=2, task=None, **how) -> Config:
    made: Any = Config  # whose sections depend on the task
    return made(
        ModelConfig(family="mlp", num_layers=1, d_model=8, mlp={"features": features}),
        DataConfig(**{"sources": (source,), "seq_len": 1, "holdout": 0.2, "cache_dir": str(cache), **how}),
        TrainConfig(objective="regression", global_batch_size=8),
        task=task or regression.Fields(target="risk"),
    )


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_any_kind_gives_the_same_rows(tmp_path, kind):
    """Scaled by the statistics of what is trained on alone, as scikit-learn's `StandardScaler` does."""
    text: Any = data.build(config(write(tmp_path, kind), tmp_path / "cache"), slice(0, 8))
    assert text.tokenizer.features == ("age", "weight") and text.eval is not None
    sides = split_sources((text.train.sources[0].spec,), (), 0.2, ("*",))
    raw = [numbers(side, ("age", "weight"), "risk") for side in sides]
    expected: Any = preprocessing.StandardScaler().fit(raw[0])
    for rows, values in zip((text.train.sources[0], text.eval.sources[0]), raw, strict=True):
        np.testing.assert_allclose(rows.values, expected.transform(values), rtol=1e-6, atol=1e-6)
    assert len(raw[0]) + len(raw[1]) == len(RECORDS) and len(raw[1])


def test_digests_of_text_and_records_are_those_of_their_content():
    assert canonical("text") == b"text"
    assert canonical((["a", "b"], ["X", "Y"])) == json.dumps([["a", "b"], ["X", "Y"]]).encode()
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    others = (image.astype(np.int32), image.reshape(3, 2), image + 1)
    assert len({document_fraction((each,)) for each in (image, *others)}) == 4
    assert document_fraction((image.copy(), np.float64(0.5))) == document_fraction((image, 0.5))


def test_the_data_sets_of_scikit_learn():
    read = [values for _, values in open_source("sklearn:digits", ("image", "target")).read()]
    expected: Any = datasets.load_digits()
    assert len(read) == 1797 and all(np.array_equal(read[i][0], expected.images[i]) for i in (0, 5, 1796))
    with pytest.raises(DataError, match=r"sklearn:iris is none of sklearn:diabetes"):
        open_source("sklearn:iris", ("*",))
    with pytest.raises(DataError, match=r"no column 'height'"):
        open_source("sklearn:diabetes", ("height",))
    with pytest.raises(DataError, match=r"cannot give what train\.objective reads"):
        open_source("sklearn:diabetes", "text")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": "heavy"}, r"table.csv:12: 'weight' is 'heavy', no finite number"),
        ({"weight": "nan"}, "'weight' is 'nan', no finite number"),
        ({"risk": ""}, "'risk' is '', no finite number"),
    ],
)
def test_what_is_no_number_is_named(tmp_path, change, said):
    records = [record | (change if number == 10 else {}) for number, record in enumerate(RECORDS)]
    with pytest.raises(DataError, match=said):
        data.build(config(write(tmp_path, "csv", records), tmp_path / "cache"), slice(0, 8))


def test_mistakes_are_told(tmp_path):
    source = write(tmp_path, "csv")
    with pytest.raises(DataError, match=r"2 features \(age, weight\), but model.mlp.features=3: set"):
        data.build(config(source, tmp_path / "cache", features=3), slice(0, 8))
    with pytest.raises(DataError, match="no column 'rsk', only 'age', 'weight', 'risk'"):
        data.build(config(source, tmp_path / "cache", task=regression.Fields(target="rsk")), slice(0, 8))
    with pytest.raises(ConfigError, match=r"a row of train.objective='regression' is one record: set data.seq_len=1"):
        config(source, tmp_path / "cache", seq_len=4)
    with pytest.raises(DataError, match="there is no scaler of a table in"):
        Scaler.load(tmp_path)


def test_figures_are_those_of_scikit_learn():
    class HeldOut:
        sources = (type("Rows", (), {"scaler": Scaler(("x",), "y", (0.0, 150.0), (1.0, 77.0))})(),)

    rng = np.random.default_rng(0)
    true, found = rng.standard_normal((2, 50)).astype(np.float32)
    measured = regression.report(found, true, HeldOut())[0]["regression"]
    a, b = true.astype(np.float64) * 77 + 150, found.astype(np.float64) * 77 + 150
    assert measured["mse"] == pytest.approx(metrics.mean_squared_error(a, b), rel=1e-12)
    assert measured["rmse"] == pytest.approx(metrics.root_mean_squared_error(a, b), rel=1e-12)
    assert measured["mae"] == pytest.approx(metrics.mean_absolute_error(a, b), rel=1e-12)
    assert measured["r2"] == pytest.approx(metrics.r2_score(a, b), rel=1e-12)


def test_from_a_table_to_figures(tmp_path, call_command):
    """A linear target is found: better than its mean, as good as least squares within what few steps leave."""
    source = write(tmp_path, "csv")
    cfg = config(source, tmp_path / "cache")
    train_cfg = {"steps": 60, "global_batch_size": 32}
    log = {"tensorboard": False, "plot": False}
    cfg = replace(cfg, train=train_cfg, optim={"lr": 0.02}, log=log, model={"activation": "relu"})
    assert train.run(cfg, tmp_path / "run") == 0
    result = commands.read(tmp_path / "run/result.json")
    assert result["tokens"] is None and result["rows"] == 60 * 32 and "rows_per_s" in result
    assert "eval_perplexity" not in result and result["eval_rows"] > 0
    status, said, _ = call_command("experiments.evaluate", f"--workdir={tmp_path}/run")
    assert status == 0
    scores = json.loads(said)
    assert scores["regression"]["r2"] > 0.95
    sides = split_sources((source,), (), 0.2, ("*",))
    fitted, held_out = (numbers(side, ("age", "weight"), "risk") for side in sides)
    best = linear_model.LinearRegression().fit(fitted[:, :-1], fitted[:, -1]).predict(held_out[:, :-1])
    assert scores["regression"]["rows"] == len(held_out)
    assert scores["regression"]["mse"] >= metrics.mean_squared_error(held_out[:, -1], best) - 1e-9
    # What a run scores is what its scaler, read again, makes of the same records.
    assert Scaler.load(tmp_path / "run").target == "risk"
