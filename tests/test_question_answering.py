"""Answers in texts: where they lie, pieces of long texts, mistakes, scores, and a run from file to figures."""

import json

import numpy as np
import pytest

from bigjax import data, strict
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data import DataError
from bigjax.evaluate import question_answering
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
    assert question_answering.answers(logits, rows) == {0: "丹麦"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_start": 3}, "data.jsonl:1: the answer 'Verona' does not stand at character 3 of the context"),
        ({"answer": "Rome"}, "the answer 'Rome' does not stand at character 15"),
        ({"answer": "", "answer_start": 0}, "the answer '' does not stand at character 0"),
        ({"answer": []}, "an answer is a string and where it starts a number, or both are lists as long"),
        ({"answer_start": "15"}, "an answer is a string and where it starts a number"),
        ({"question": None}, "context and question must be strings"),
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


def test_from_questions_to_answers(tmp_path, tmp_path_factory):
    run = commands.Commands(commands.shared_cache(tmp_path_factory)).run
    path, unseen = jsonl(tmp_path), jsonl(tmp_path, [example("Oberon", "Athens")], "unseen")
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
        "--config.optim.warmup_steps=5",
        "--config.optim.lr=0.01",
        "--config.train.steps=80",
        "--config.log.plot=False",
        "--config.log.tensorboard=False",
        f"--workdir={tmp_path}/run",
    )
    run("experiments.train", *tiny, devices=2)
    evaluated = run("experiments.evaluate", f"--workdir={tmp_path}/run", "--split=train")
    scores = json.loads(evaluated.stdout)
    assert (scores["questions"], scores["exact_match"], scores["f1"]) == (len(EXAMPLES), 1.0, 1.0)
    assert "found: 'Verona', right: 'Verona'" in evaluated.stderr
