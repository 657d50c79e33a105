"""Answers in texts: where they lie, pieces of long texts, mistakes, scores, and a run from file to figures."""

import json

import numpy as np
import pytest

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, strict
from bigjax.data import DataError
from bigjax.tasks.reports import answers as question_answering
from tests import commands

HOMES = {"Romeo": "Verona", "Hamlet": "Elsinore", "Timon": "Athens", "Shylock": "Venice", "Lear": "Dover"}


def example(person: str, place: str) -> dict:
    context = f"{person} lives in {place}."
    return {
        "context": context,
        "question": f"Where is {person}?",
        "answer": place,
        "answer_start": context.index(place),
    }


EXAMPLES = [example(*home) for home in HOMES.items()]


def jsonl(folder, records=EXAMPLES, name="data"):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def config(source, cache, seq_len=64, doc_stride=16) -> Config:
    return Config(
        ModelConfig(family="encoder", head="question_answering", vocab_size=260, token_types=2),
        DataConfig(
            sources=(source,),
            text_key="context",
            seq_len=seq_len,
            doc_stride=doc_stride,
            holdout=0.0,
            cache_dir=str(cache),
        ),
        TrainConfig(objective="question_answering", global_batch_size=1),
    )


def build(source, cache, **how):
    return data.build(config(source, cache, **how), slice(0, 1)).train.sources[0]


def test_a_row_has_the_question_the_context_and_both_ends_of_the_answer(tmp_path):
    rows = build(f"jsonl:{jsonl(tmp_path)}", tmp_path / "cache")
    assert len(rows) == len(EXAMPLES)
    arrays = rows.arrays(np.arange(len(rows) + 1), np.arange(len(rows) + 1))
    for b, one in enumerate(EXAMPLES):
        content = [257, *one["question"].encode(), 258, *one["context"].encode(), 258]
        assert arrays["tokens"][b].tolist() == content + [256] * (64 - len(content))
        asked = len(one["question"]) + 2
        assert arrays["types"][b].tolist() == [0] * asked + [1] * (len(content) - asked) + [0] * (64 - len(content))
        first, last = arrays["targets"][b].tolist()
        assert bytes(arrays["tokens"][b, first : last + 1].tolist()).decode() == one["answer"]
    assert arrays["weights"].tolist() == [[1, 1]] * len(EXAMPLES) + [[0, 0]]


def test_long_contexts_are_read_in_pieces_that_leave_nothing_out(tmp_path):
    context = "".join(chr(97 + n % 26) for n in range(200))
    record = {"context": context, "question": "q" * 100, "answer": context[120:125], "answer_start": 120}
    rows = build(f"jsonl:{jsonl(tmp_path, [record])}", tmp_path / "cache", seq_len=43, doc_stride=7)
    # Half of the 40 places between the three ends are for the question.
    assert rows.pieces[:, 1].tolist() == list(range(0, 183, 7))
    assert rows.pieces[-1, 2] == 200
    assert (np.diff(rows.pieces[:, 1:], axis=1).ravel()[:-1] == 20).all()
    arrays = rows.arrays(np.arange(len(rows)), np.arange(len(rows)))
    for (_, start, stop), targets, tokens in zip(
        rows.pieces.tolist(), arrays["targets"], arrays["tokens"], strict=True
    ):
        if start <= 120 and stop >= 125:
            assert bytes(tokens[targets[0] : targets[1] + 1].tolist()).decode() == context[120:125]
        else:
            assert targets.tolist() == [0, 0]
    assert arrays["targets"].any()


def test_characters_of_several_bytes_are_counted_as_characters(tmp_path):
    record = {
        "context": "哈姆雷特住在丹麦。",
        "question": "谁？",
        "answer": ["丹麦", "哈姆雷特"],
        "answer_start": [6, 0],
    }
    rows = build(f"jsonl:{jsonl(tmp_path, [record])}", tmp_path / "cache")
    arrays = rows.arrays(np.arange(1), np.arange(1))
    first, last = arrays["targets"][0].tolist()
    assert bytes(arrays["tokens"][0, first : last + 1].tolist()).decode() == "丹麦"
    logits = np.zeros((1, 2, 64))
    logits[0, 0, first] = logits[0, 1, last] = 5
    assert question_answering.answers(logits, rows) == {0: ("丹麦", -10.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_start": 3}, "data.jsonl:1: the answer 'Verona' does not stand at character 3 of the context"),
        ({"answer": "Rome"}, "the answer 'Rome' does not stand at character 15"),
        ({"answer": "", "answer_start": 0}, "the answer '' does not stand at character 0"),
        ({"answer": []}, "an answer is a string and where it starts a number, or both are lists as long"),
        ({"answer": [], "answer_start": [], "context": " "}, "data.jsonl:1: the context is empty"),
        ({"answer_start": "15"}, "an answer is a string and where it starts a number"),
        ({"question": None}, "context and question must be strings"),
        ({"is_impossible": "no"}, "data.jsonl:1: 'is_impossible' is 'no', neither true nor false"),
        ({"is_impossible": None}, "data.jsonl:1: 'is_impossible' is None, neither true nor false"),
        ({"is_impossible": False, "answer": [], "answer_start": []}, "no answer, but 'is_impossible' is False"),
    ],
)
def test_mistakes_are_named(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        build(f"jsonl:{jsonl(tmp_path, [EXAMPLES[0] | change])}", tmp_path / "cache")


def test_a_missing_column_and_another_kind_of_source_are_named(tmp_path):
    bare = {name: value for name, value in EXAMPLES[0].items() if name != "answer_start"}
    with pytest.raises(DataError, match="line 1: no key 'answer_start', only 'context', 'question', 'answer'"):
        build(f"jsonl:{jsonl(tmp_path, [bare])}", tmp_path / "cache")
    with pytest.raises(DataError, match=r"conll:x' cannot give what .* 'answer_start' of each record of jsonl:GLOB"):
        build("conll:x", tmp_path)


def test_configs_that_would_skip_text_or_confuse_the_parts_clash_by_name(tmp_path):
    with pytest.raises(strict.ConfigError, match=r"data.doc_stride=32 skips tokens .* it is at most 31"):
        config("jsonl:x", tmp_path, doc_stride=32)
    with pytest.raises(strict.ConfigError, match=r"model.token_types=0 does not tell the two parts of a row apart"):
        Config(
            ModelConfig(family="encoder", head="question_answering"),
            train=TrainConfig(objective="question_answering"),
        )


def test_the_best_span_is_that_of_trying_all():
    rng = np.random.default_rng(0)
    logits, longest = rng.normal(size=(2, 80)), question_answering.LONGEST
    every = {(logits[0, i] + logits[1, j], i, j) for i in range(5, 70) for j in range(i, min(i + longest, 70))}
    assert question_answering.best_span(logits, 5, 70) == pytest.approx(max(every))


def test_scores_are_those_of_squad():
    """Normalised as the evaluation script of SQuAD does; the best of several right answers counts."""
    assert question_answering.normalise("The  Tower,\nof a-London!") == "tower of alondon"
    found = ["the Verona.", "in old Athens", "Rome"]
    wanted = [["verona"], ["Sparta", "Athens"], ["Venice"]]
    measured = question_answering.report(found, wanted)
    # F1 of the second: precision 1 / 3, recall 1.
    assert measured == {"exact_match": pytest.approx(1 / 3), "f1": pytest.approx((1 + 0.5 + 0) / 3), "questions": 3}


UNANSWERED = {"context": "Lear lives.", "question": "Where is Lear?", "answer": [], "answer_start": []}
PLAUSIBLE = {"context": "Kent is off to Rome.", "question": "Why?", "answer": "Rome", "answer_start": 15}


def test_no_answer_is_learned_as_the_first_place_of_a_row(tmp_path):
    rows = build(f"jsonl:{jsonl(tmp_path, [EXAMPLES[0], UNANSWERED])}", tmp_path / "cache")
    arrays = rows.arrays(np.arange(2), np.arange(2))
    assert arrays["targets"][1].tolist() == [0, 0] and arrays["targets"][0].all()
    assert arrays["weights"].tolist() == [[1, 1]] * 2
    assert rows.examples[1].answers == ()


@pytest.mark.parametrize(("said", "answered"), [(True, 0), ("true", 0), (1, 0), (False, 1), ("false", 1), (0, 1)])
def test_a_plausible_answer_of_an_impossible_question_is_none(said, answered, tmp_path):
    rows = build(f"jsonl:{jsonl(tmp_path, [EXAMPLES[0], PLAUSIBLE | {'is_impossible': said}])}", tmp_path / "cache")
    assert [len(one.answers) for one in rows.examples] == [1, answered]
    assert rows.arrays(np.arange(2), np.arange(2))["targets"].any(axis=1).tolist() == [True, bool(answered)]


def test_no_answer_of_a_long_text_scores_as_its_least_piece(tmp_path):
    """run_squad.py of Devlin et al. 2019 takes the minimum: `[CLS]` of a piece speaks of this piece only."""
    record = {"context": "abcdefghij" * 3, "question": "q", "answer": [], "answer_start": []}
    rows = build(f"jsonl:{jsonl(tmp_path, [record])}", tmp_path / "cache", seq_len=24, doc_stride=10)
    assert len(rows) == 2
    logits = np.full((2, 2, 24), -9.0)
    logits[:, :, 0] = [[3, 4], [1, 2]]
    logits[0, :, 3], logits[1, :, 5] = 0.5, 2  # the best of the spans is "c" in the second piece, which starts at 10
    assert question_answering.answers(logits, rows) == {0: ("c", 3.0 - 4.0)}


def official(texts, wanted, doubts, threshold):
    """SQuAD 2.0's definition, question by question: means in all, of those with an answer and without, and the best."""

    def score(text, rights):
        golds = [words for words in (question_answering.normalise(right).split() for right in rights) if words] or [[]]
        words, f1s = question_answering.normalise(text).split(), []
        for gold in golds:
            common = sum(min(words.count(word), gold.count(word)) for word in set(words))
            empty = not words or not gold
            f1s.append(float(words == gold) if empty else 2 * common / (len(words) + len(gold)))
        return float(any(words == gold for gold in golds)), max(f1s)

    def means(limit, chosen):
        answered = [("" if doubts[i] > limit else texts[i], wanted[i]) for i in chosen]
        return np.mean([score(*one) for one in answered], axis=0).tolist()

    everyone = range(len(texts))
    sides = [[i for i in everyone if bool(wanted[i]) == kind] for kind in (True, False)]
    bests = np.max([means(limit, everyone) for limit in [-1e9, *doubts]], axis=0).tolist()
    return [means(threshold, side) for side in (everyone, *sides)], bests


@pytest.mark.parametrize("threshold", [-1.5, 0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_are_those_of_squad_2(seed, threshold):
    rng = np.random.default_rng(seed)
    words = ["Verona", "the old town", "a", "Athens.", "old town", "Town of Athens"]
    texts = rng.choice(words, 40).tolist()
    wanted = [tuple(rng.choice(words, rng.integers(1, 3))) if rng.random() < 0.6 else () for _ in texts]
    doubts = rng.integers(-3, 4, 40).astype(float).tolist()  # so that many are equal
    found = [question_answering.Found(*one) for one in zip(texts, doubts, strict=True)]
    measured = question_answering.report(question_answering.said(found, threshold), wanted)
    groups, bests = official(texts, wanted, doubts, threshold)
    for side, group in zip((measured, measured["has_answer"], measured["no_answer"]), groups, strict=True):
        assert [side["exact_match"], side["f1"]] == pytest.approx(group)
    assert measured["questions"] == measured["has_answer"]["questions"] + measured["no_answer"]["questions"] == 40
    best = question_answering.best_thresholds(found, wanted)
    assert [best["best_exact_match"], best["best_f1"]] == pytest.approx(bests)
    for name in ("exact_match", "f1"):
        chosen = question_answering.said(found, best[f"best_{name}_threshold"])
        assert question_answering.report(chosen, wanted)[name] == pytest.approx(best[f"best_{name}"])


def test_a_worked_example_of_no_answers():
    """Two with an answer, one of which is doubted, and two without: one is doubted, one answered all the same."""
    found = [question_answering.Found(*one) for one in (("Rome", -2), ("in Troy", 1), ("Rome", 2), ("Rome", -1))]
    wanted = [("Rome",), ("Troy",), (), ()]
    assert question_answering.said(found, 0.0) == ["Rome", "", "", "Rome"]
    measured = question_answering.report(question_answering.said(found, 0.0), wanted)
    assert (measured["exact_match"], measured["f1"]) == (0.5, 0.5)
    assert measured["has_answer"] == {"exact_match": 0.5, "f1": 0.5, "questions": 2}
    assert measured["no_answer"] == {"exact_match": 0.5, "f1": 0.5, "questions": 2}
    best = question_answering.best_thresholds(found, wanted)
    # Doubting all but the first is right three times; "in Troy" has an F1 of 2/3, too little for a wrong "Rome".
    assert best == {
        "best_exact_match": 0.75,
        "best_exact_match_threshold": -2,
        "best_f1": 0.75,
        "best_f1_threshold": -2,
    }


@pytest.mark.exhaustive
def test_from_questions_to_answers(tmp_path, tmp_path_factory):
    run = commands.Commands(commands.shared_cache(tmp_path_factory)).run
    path = jsonl(tmp_path, [*EXAMPLES, PLAUSIBLE | {"is_impossible": True}])
    unseen = jsonl(tmp_path, [example("Oberon", "Athens")], "unseen")
    tiny = (
        "--config=configs/finetune_question_answering.py",
        "--config.model.num_layers=2",
        "--config.model.d_model=32",
        "--config.model.d_ff=64",
        "--config.model.num_heads=2",
        "--config.model.dropout=0.0",
        "--config.model.vocab_size=260",
        "--config.data.tokenizer=bytes",
        "--config.data.seq_len=48",  # so that contexts are read in pieces
        "--config.data.doc_stride=8",
        f"--config.data.sources=jsonl:{path}",
        f"--config.data.eval_sources=jsonl:{unseen}",
        "--config.train.global_batch_size=4",
        "--config.optim.warmup=5",
        "--config.optim.lr=0.01",
        "--config.train.steps=80",
        "--config.log.plot=False",
        "--config.log.tensorboard=False",
        f"--workdir={tmp_path}/run",
    )
    run("experiments.train", *tiny, devices=2)
    evaluated = run("experiments.evaluate", f"--workdir={tmp_path}/run", "--split=train")
    scores = json.loads(evaluated.stdout)
    assert (scores["questions"], scores["exact_match"], scores["f1"]) == (len(EXAMPLES) + 1, 1.0, 1.0)
    assert (scores["no_answer"]["questions"], scores["no_answer"]["f1"], scores["best_f1"]) == (1, 1.0, 1.0)
    assert "found: 'Verona', right: 'Verona'" in evaluated.stderr
