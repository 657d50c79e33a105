"""Words with classes: where labels lie, what is cut, mistakes, entities, and a run from file to figures."""

import json
from itertools import chain

import numpy as np
import pytest
from sklearn import metrics

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data import DataError
from bigjax.data.rows.tagged import first_tokens
from bigjax.tasks.reports import entities
from tests import commands

PEOPLE, PLACES = ("Hamlet", "Juliet", "Lear"), ("Verona", "Elsinore", "Dover")
SENTENCES = [
    [(person, "B-PER"), ("went", "O"), ("to", "O"), (place, "B-LOC"), (".", "O")]
    for person in PEOPLE
    for place in PLACES
] + [
    [("In", "O"), ("New", "B-LOC"), (place, "I-LOC"), ("lives", "O"), (person, "B-PER")]
    for person in PEOPLE
    for place in PLACES
]


def conll(folder, sentences=SENTENCES):
    path = folder / "data.conll"
    lines = ["-DOCSTART- O", "", *("".join(f"{word} x {tag}\n" for word, tag in one) for one in sentences)]
    path.write_text("\n".join(lines))
    return path


def build(source, cache, num_classes=4, seq_len=32, **options):
    cfg = Config(
        ModelConfig(family="encoder", head="token_classification", num_classes=num_classes, vocab_size=320),
        DataConfig(sources=(source,), seq_len=seq_len, holdout=0.0, cache_dir=str(cache), **options),
        TrainConfig(objective="token_classification", global_batch_size=4),
    )
    return data.build(cfg, slice(0, 4)).train.sources[0]


@pytest.mark.parametrize("kind", ["conll", "jsonl"])
def test_labels_lie_on_the_first_token_of_each_word(kind, tmp_path):
    path = conll(tmp_path)
    options = {}
    if kind == "jsonl":
        path = tmp_path / "data.jsonl"
        records = [{"words": [w for w, _ in one], "tags": [t for _, t in one]} for one in SENTENCES]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        options = {"text_key": "words", "label_key": "tags"}
    rows = build(f"{kind}:{path}", tmp_path / "cache", **options)
    assert rows.classes == ("B-LOC", "B-PER", "I-LOC", "O")
    assert rows.words == (5,) * len(SENTENCES)
    arrays = rows.arrays(np.arange(len(SENTENCES) + 1), np.arange(len(SENTENCES) + 1))
    for b, sentence in enumerate(SENTENCES):
        text = " ".join(word for word, _ in sentence).encode()
        assert arrays["tokens"][b, : len(text) + 2].tolist() == [257, *text, 258]
        place = 1
        for word, tag in sentence:
            assert arrays["weights"][b, place] == 1
            assert rows.classes[arrays["targets"][b, place]] == tag
            place += len(word) + 1
        assert arrays["weights"][b].sum() == len(sentence)
    assert not arrays["weights"][-1].any()


def test_long_sentences_become_rows_cut_between_words(tmp_path):
    words = [(f"w{'x' * (3 + n % 5)}", "AB"[n % 2]) for n in range(40)]
    rows = build(f"conll:{conll(tmp_path, [words])}", tmp_path / "cache", num_classes=2, seq_len=20)
    assert rows.words == (40,)
    arrays = rows.arrays(np.arange(len(rows)), np.arange(len(rows)))
    predicted = arrays["targets"][arrays["weights"] > 0]
    assert [rows.classes[number] for number in predicted.tolist()] == [tag for _, tag in words]
    full = zip(arrays["tokens"], arrays["segments"].sum(axis=1), strict=True)
    text = b"".join(bytes(row[1 : n - 1].tolist()) for row, n in full)
    assert text == " ".join(word for word, _ in words).encode()
    assert all(row[1] == ord("w") for row in arrays["tokens"])


def test_words_of_a_tokenizer_that_drops_and_joins_characters():
    """A word without a token, and one whose first token starts with the space before it."""
    spans = np.array([[0, 2], [2, 5], [7, 9]])
    assert list(first_tokens(["ab", "cd", "-", "ef"], spans)) == [0, 1, None, 2]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a O\nb\n", {}, "line 2: the word 'b' has no tag"),
        ("a O\nb X\n", {"num_classes": 3}, r"there are 2 classes \(O, X\), but model.num_classes=3"),
        ("a O\nb X\n", {"num_classes": 2, "classes": ("O", "Y")}, "label 'X', which is none of the classes O, Y"),
        ("a O\nb X\n", {"num_classes": 3, "classes": ("O", "X", "Z")}, "no word of the class 'Z' to train on"),
    ],
)
def test_mistakes_in_two_columns_are_named(text, options, message, tmp_path):
    path = tmp_path / "data.conll"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        build(f"conll:{path}", tmp_path / "cache", **options)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": ["a", "b"], "label": ["O"]}, "data.jsonl:1: 2 words have 1 tags"),
        ({"text": ["a", "b"]}, "line 1: no key 'label', only 'text'"),
        ({"text": "a b", "label": ["O", "O"]}, "the words are not a list of strings"),
        ({"text": ["a"], "label": [3.5]}, "the tags are not a list of strings"),
    ],
)
def test_mistakes_in_records_are_named(record, message, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=message):
        build(f"jsonl:{path}", tmp_path / "cache")


def test_other_sources_have_no_tags(tmp_path):
    with pytest.raises(DataError, match=r"'shakespeare' cannot give .* reads: 'text', 'label' of each record"):
        build("shakespeare", tmp_path)


def test_entities_are_those_of_conlleval():
    found = entities.entities(["I-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-LOC", "I-PER", "O", "I-LOC"])
    assert list(found) == [("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 6), ("PER", 6, 7), ("LOC", 8, 9)]


def test_entity_scores_of_a_published_example():
    """The example of seqeval's documentation: precision, recall and F1 are 0.50, and macro F1 0.50."""
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    measured = entities.report(predicted, true)
    assert measured["micro"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert measured["macro"]["f1"] == 0.5
    assert measured["kinds"]["PER"] == {"precision": 1, "recall": 1, "f1": 1, "entities": 1}
    assert [line.split()[0] for line in entities.table(measured).splitlines()[1:]] == ["MISC", "PER", "micro", "macro"]


def test_entity_scores_of_single_words_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    kinds = ["O", "B-A", "B-B", "B-C"]
    true, predicted = ([rng.choice(kinds, 7).tolist() for _ in range(50)] for _ in range(2))
    measured, flat = entities.report(predicted, true), ([*chain(*true)], [*chain(*predicted)])
    for average in ("micro", "macro"):
        wanted = metrics.precision_recall_fscore_support(*flat, labels=kinds[1:], average=average)[:3]
        assert list(measured[average].values()) == pytest.approx(wanted)


@pytest.mark.exhaustive
def test_from_two_columns_to_entities(tmp_path, tmp_path_factory):
    run = commands.Commands(commands.shared_cache(tmp_path_factory)).run
    path, unseen = conll(tmp_path), tmp_path / "unseen.conll"
    unseen.write_text("".join(f"{word} {tag}\n" for word, tag in SENTENCES[4]))
    tiny = (
        "--config=configs/finetune_token_classification.py",
        "--config.model.num_layers=1",
        "--config.model.d_model=32",
        "--config.model.d_ff=64",
        "--config.model.num_heads=2",
        "--config.model.dropout=0.0",
        "--config.model.vocab_size=300",
        "--config.model.num_classes=4",
        "--config.data.tokenizer=bpe:270",
        "--config.data.seq_len=40",
        f"--config.data.sources=conll:{path}",
        f"--config.data.eval_sources=conll:{unseen}",
        "--config.data.max_overlap=1.0",  # what is learnt here is learnt by heart
        "--config.train.global_batch_size=8",
        "--config.optim.warmup=5",
        "--config.optim.lr=0.01",
        "--config.train.steps=60",
        "--config.log.plot=False",
        "--config.log.tensorboard=False",
        f"--workdir={tmp_path}/run",
    )
    run("experiments.train", *tiny, devices=2)
    evaluated = run("experiments.evaluate", f"--workdir={tmp_path}/run", "--split=train")
    scores = json.loads(evaluated.stdout)
    assert scores["classification"]["rows"] == 5 * len(SENTENCES)
    assert scores["classification"]["accuracy"] == 1.0
    assert scores["entities"]["micro"]["f1"] == 1.0
    assert scores["entities"]["kinds"]["PER"]["entities"] == len(SENTENCES)
    assert "entities" in evaluated.stderr
    run("experiments.export", f"--workdir={tmp_path}/run", f"--out={tmp_path}/hf")
    told = json.loads((tmp_path / "hf/config.json").read_text())
    assert told["architectures"] == ["BertForTokenClassification"]
    assert told["id2label"] == {"0": "B-LOC", "1": "B-PER", "2": "I-LOC", "3": "O"}
    left = ("--config.data.seq_len=40", f"--config.data.sources=conll:{path}", f"--sources=conll:{path}")
    again = json.loads(run("experiments.evaluate", f"--workdir=hf:{tmp_path}/hf", *left).stdout)
    assert (again["classification"], again["entities"]) == (scores["classification"], scores["entities"])
