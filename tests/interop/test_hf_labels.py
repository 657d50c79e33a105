"""The classes of a Hugging Face head: their order is that of the logits, and what does not fit is refused in brief."""

import json

import pytest

from bigjax.config import Config, strict
from bigjax.data import DataError
from bigjax.interop import hf
from bigjax.interop.hf import labels as hf_labels
from bigjax.interop.hf import verify as hf_verify
from bigjax.interop.hf.architecture import HuggingFaceError
from bigjax.interop.hf.config import class_names
from configs import finetune_classification
from experiments import config_source, trained
from tests.interop.test_hf_bert_t5 import CLASSIFIER, TAGGER
from tests.interop.test_hf_weights import random_params
from tests.tasks.test_classification import build, csv_file

ROWS = [("the moon", "sky"), ("a fish", "sea"), ("a gull", "air")] * 4


def test_numbered_classes_are_meant_by_their_numbers(tmp_path):
    """Also from 10 on, where text sorts otherwise."""
    rows = [(f"text {i}", f"{i % 12}" if i < 12 else f"LABEL_{i % 12}") for i in range(24)]
    names = tuple(f"LABEL_{i}" for i in range(12))
    data = build(f"csv:{csv_file(tmp_path, rows)}", tmp_path / "cache", num_classes=12, classes=names)
    assert data.train.sources[0].labels.tolist() == [*range(12)] * 2


@pytest.mark.parametrize(
    ("theirs", "ours", "chosen"),
    [
        (("b", "a"), ("b", "a"), False),
        (("LABEL_0", "LABEL_1"), ("0", "1"), False),
        (("LABEL_0", "LABEL_1"), ("sea", "sky"), True),
        (("NEGATIVE", "POSITIVE"), ("0", "1"), True),
    ],
)
def test_classes_that_fit(theirs, ours, chosen):
    hf_labels.check_order("hf:x", theirs, ours, chosen=chosen)


@pytest.mark.parametrize(
    ("theirs", "ours", "chosen", "message"),
    [
        (
            ("b", "a"),
            ("a", "b"),
            False,
            r"the head of hf:x has the classes b, a in this order, .* are a, b: set",
        ),
        (("LABEL_0", "LABEL_1"), ("sea", "sky"), False, r"set data.classes to the labels of the data in the order"),
        (tuple(f"LABEL_{i}" for i in range(12)), tuple(sorted(map(str, range(12)))), False, r"are 0, 1, 10, 11, 2, .*"),
        (
            ("NEGATIVE", "POSITIVE"),
            ("positive", "negative"),
            True,
            r"'positive' in another place .* it is class 1",
        ),
    ],
)
def test_classes_that_do_not_fit(theirs, ours, chosen, message):
    with pytest.raises(HuggingFaceError, match=message):
        hf_labels.check_order("hf:x", theirs, ours, chosen=chosen)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Return a function that exports a classifier of 3 classes and says something else in its config."""
    monkeypatch.setattr(hf_verify, "find_spec", lambda name: None)

    def export(cfg=CLASSIFIER, **said):
        place = tmp_path / "hf"
        hf.export_checkpoint(random_params(cfg), cfg, place)
        values = json.loads((place / "config.json").read_text()) | said
        (place / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))
        return place

    return export


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"id2label": {"2": "c", "0": "b", "1": "a"}}, ("b", "a", "c")),
        ({"id2label": "absent", "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"0": "b", "1": "a", "2": "c"}, "num_labels": 3}, ("b", "a", "c")),
        ({"id2label": None, "label2id": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    ],
)
@pytest.mark.parametrize("cfg", [CLASSIFIER, TAGGER], ids=["texts", "words"])
def test_the_order_is_that_of_the_logits(folder, cfg, said, names):
    place = folder(cfg, **said)
    assert class_names(place) == names
    run = strict.from_dict(Config, config_source.load(f"hf:{place}"))
    assert (run.data.classes, run.model.num_classes) == (names, 3)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_labels": 4}, r"num_labels=4, but id2label has 3 names$"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, r"id2label is not a table of a name for each number from 0$"),
        ({"id2label": {"0": "a", "x": "b"}}, r"id2label is not a table of a name for each number from 0$"),
        ({"id2label": ["a", "b"]}, r"id2label is not a table of a name for each number from 0$"),
    ],
)
def test_tables_of_classes_that_are_none(folder, said, message):
    with pytest.raises(HuggingFaceError, match=message):
        hf.import_checkpoint(folder(**said))


def test_a_head_that_is_kept_keeps_its_classes(folder, tmp_path):
    """Whatever config the run has: one made for the folder says the order, of any other the data must have it."""
    place = folder(id2label={"0": "sky", "1": "sea", "2": "air"}, vocab_size=61)
    cfg = strict.from_dict(Config, finetune_classification.get_config(f"hf:{place}"))
    text = build(f"csv:{csv_file(tmp_path, ROWS)}", tmp_path / "cache", num_classes=3)
    with pytest.raises(HuggingFaceError, match=r"classes sky, sea, air in this order, .* are air, sea, sky: set"):
        trained.initial_params(cfg, {}, text)


def test_what_is_quoted_of_the_users_data_is_bounded(folder, tmp_path):
    rows = [(f"text {i}", f"label {i} " * 5000) for i in range(40)]
    for how in ({}, {"classes": ("a", "b")}):
        with pytest.raises(DataError) as caught:
            build(f"csv:{csv_file(tmp_path, rows)}", tmp_path / "cache", **how)
        assert len(str(caught.value)) < 1500
    names = {str(i): "name " * 9000 for i in range(3)}
    place = folder(id2label=names | {"7": "x"}, task={"deep": ["text" * 9000] * 50})
    with pytest.raises(HuggingFaceError) as caught:
        hf.import_checkpoint(place)
    assert len(str(caught.value)) < 500
