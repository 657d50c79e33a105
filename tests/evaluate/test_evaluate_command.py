"""The evaluation command gives the figures of the run, and scores other text."""

import json
import math

import pytest

from tests.commands import TINY, Commands, contents, read, shared_cache

EVALUATE = "experiments.evaluate"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def workdir(commands, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    commands.run("experiments.train", *TINY, f"--workdir={folder}")
    return folder


def scores(done) -> dict:
    (line,) = done.stdout.splitlines()
    assert done.stderr == ""
    return json.loads(line)


def test_it_repeats_the_result_of_the_run_and_changes_nothing(commands, workdir):
    before, result = contents(workdir), read(workdir / "result.json")
    found = scores(commands.run(EVALUATE, f"--workdir={workdir}", "--batches=2"))
    assert (found["step"], found["sources"]) == (8, ["shakespeare"])
    assert found["loss"] == result["eval_loss"]
    assert found["bits_per_byte"] == result["eval_bits_per_byte"]
    assert found["tokens"] == result["eval_tokens"]
    assert found["perplexity"] == pytest.approx(math.exp(result["eval_loss"]))
    assert contents(workdir) == before


def test_it_scores_the_training_text(commands, workdir):
    found = scores(commands.run(EVALUATE, f"--workdir={workdir}", "--split=train", "--batches=3"))
    assert found["tokens"] == 3 * 8 * 32
    assert found["loss"] != read(workdir / "result.json")["eval_loss"]
    assert found["loss"] == pytest.approx(read(workdir / "result.json")["train_loss"], rel=0.1)


def test_it_scores_other_sources_on_another_mesh(commands, workdir, tmp_path):
    (tmp_path / "a.txt").write_text("To be, or not to be, that is the question. " * 8)
    (tmp_path / "b.jsonl").write_text('{"text": "Whether tis nobler in the mind to suffer"}\n')
    sources = f"text:{tmp_path}/a.txt,jsonl:{tmp_path}/b.jsonl"
    arguments = (f"--workdir={workdir}", f"--sources={sources}")
    one = scores(commands.run(EVALUATE, *arguments))
    two = scores(commands.run(EVALUATE, *arguments, "--config.mesh.tensor=2", devices=2))
    assert one["sources"] == sources.split(",")
    assert one["tokens"] == 8 * 43 - 1 + 40 - 1
    assert two["tokens"] == one["tokens"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_tasks_with_data_of_their_own_leave_out_the_text_of_the_run(commands, call_command, workdir, tmp_path):
    quiz, text = tmp_path / "quiz.jsonl", tmp_path / "a.txt"
    questions = [{"question": "To be,", "choices": ["or not", "été"], "answer": "or not"}] * 3
    quiz.write_text("".join(json.dumps(one) + "\n" for one in questions))
    text.write_text("Whether tis nobler in the mind to suffer " * 3)
    tasks = f"multiple_choice:{quiz}", f"rolling:text:{text}"
    arguments = (f"--workdir={workdir}", f"--tasks={','.join(tasks)}")
    one = scores(commands.run(EVALUATE, *arguments))
    assert set(one) == {"step", *tasks}
    assert one[tasks[0]]["questions"] == 3 and one[tasks[0]]["acc"] in (0, 1)
    assert one[tasks[0]]["acc_stderr"] == 0
    rolled = one[tasks[1]]
    assert rolled["byte_perplexity"] == pytest.approx(2 ** rolled["bits_per_byte"])
    two = scores(commands.run(EVALUATE, *arguments, "--config.mesh.tensor=2", devices=2))
    assert two[tasks[1]] == pytest.approx(rolled, rel=1e-5)
    quiz.write_text('{"question": "To be,"}\n')
    status, _, said = call_command(EVALUATE, *arguments)
    assert status == 2 and said == f"error: {quiz}, line 1 has no 'answer' and no 'choices'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir=RUN is missing: the folder of the run"),
        (["--workdir=/nowhere"], "/nowhere is not the folder of a run: it has no config.json"),
    ],
)
def test_without_a_run_it_says_what_is_missing(call_command, arguments, message):
    assert call_command(EVALUATE, *arguments) == (2, "", f"error: {message}\n")


def test_a_run_without_a_checkpoint_cannot_be_scored(call_command, workdir, tmp_path):
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    status, _, said = call_command(EVALUATE, f"--workdir={tmp_path}")
    assert status == 2 and said == f"error: there is no complete checkpoint in {tmp_path}/checkpoints\n"


TEXTS = "--tasks=rolling:jsonl:{folder}/texts.jsonl"
USELESS = {
    "no source": (["--sources="], "--sources is empty: name a source, or leave the flag out"),
    "beams": (["--beams=2"], "--beams has no use without --tasks that write answers"),
    "split of sources": (
        ["--sources=text:a", "--split=train"],
        "--split has no use with --sources, which are scored whole",
    ),
    "split beside tasks": ([TEXTS, "--split=eval"], "--split has no use with --tasks that bring data of their own"),
    "empty texts": ([TEXTS], "the 2 texts of --tasks=rolling are all empty"),
}


@pytest.mark.parametrize("case", USELESS)
def test_a_flag_that_would_change_nothing_is_an_error(workdir, tmp_path, call_command, case):
    arguments, message = USELESS[case]
    (tmp_path / "texts.jsonl").write_text('{"text": ""}\n' * 2)
    given = [argument.format(folder=tmp_path) for argument in arguments]
    assert call_command(EVALUATE, f"--workdir={workdir}", *given) == (2, "", f"error: {message}\n")


def test_an_unknown_split_is_explained(call_command, workdir):
    status, _, said = call_command(EVALUATE, f"--workdir={workdir}", "--split=test")
    assert (status, said.count("\n")) == (2, 1)
    assert "split" in said
    assert "Traceback" not in said
