"""Labels and tags that are numbers or truth values are the same as those that a table spells."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data import DataError
from bigjax.data.rows.labelled import classes_of, read_labels
from bigjax.data.rows.tagged import read_tagged
from bigjax.data.sources.opening import SplitSource, open_source

VALUES = {
    "int": ([1, 0, 12, -3], ["1", "0", "12", "-3"]),
    "bool": ([True, False, True, False], ["true", "false", "true", "false"]),
    "str": (["1", "b", "true", "0"], ["1", "b", "true", "0"]),
}


def write(folder, form: str, labels, kind: str) -> str:
    """Write records with labels in a form; return their source."""
    texts = [f"text {number}" for number in range(len(labels))]
    path = folder / f"records.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in zip(texts, labels, strict=True)))
    elif form == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, VALUES[kind][1], strict=True)])
    else:
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    return f"{form}:{path}"


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("kind", VALUES)
def test_labels_are_those_of_a_table(form, kind, tmp_path):
    values, spelled = VALUES[kind]
    source = open_source(write(tmp_path, form, values, kind), "text")
    cfg = Config(
        ModelConfig(family="encoder", head="classification", num_classes=len(set(spelled))),
        train=TrainConfig(objective="classification"),
    )
    labels = list(read_labels(cfg, SplitSource(source, "train", "all")))
    assert labels == spelled
    assert classes_of(cfg, labels) == tuple(sorted(set(spelled)))


@pytest.mark.parametrize(("type_", "values"), [(pa.int64(), [3, 4]), (pa.uint8(), [3, 4]), (pa.bool_(), [True, False])])
def test_columns_of_any_whole_numbers_are_read(type_, values, tmp_path):
    column = pa.array(values, type_)
    for name, array in {"plain": column, "categories": column.dictionary_encode()}.items():
        pq.write_table(pa.table({"label": array}), tmp_path / f"{name}.parquet")
        found = open_source(f"parquet:{tmp_path}/{name}.parquet", "label", labels=True).read()
        assert [value for _, value in found] == [str(value).lower() for value in values]


@pytest.mark.parametrize("tags", [[0, 1, 0], [True, False, False], ["O", "B-x", "O"]])
def test_tags_may_be_numbers(tags, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": ["a", "b", "c"], "label": tags}) + "\n")
    side = SplitSource(open_source(f"jsonl:{tmp_path}/a.jsonl", ("text", "label")), "train", "all")
    (found,) = read_tagged(side)
    assert found == (["a", "b", "c"], [str(tag).lower() if not isinstance(tag, str) else tag for tag in tags])


@pytest.mark.parametrize("value", [1.5, None, [1], {"a": 1}])
def test_what_is_no_label_is_named(value, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "label": value}) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: 'label' is \w+, not a string"):
        list(open_source(f"jsonl:{tmp_path}/a.jsonl", "label", labels=True).read())


def test_texts_must_be_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match="'text' is int, not a string"):
        list(open_source(f"jsonl:{tmp_path}/a.jsonl", DataConfig().text_key).read())
