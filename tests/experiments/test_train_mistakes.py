"""What the training command answers to a mistake: one sentence and status 2, before anything is written or compiled."""

import re
from pathlib import Path

import pytest

from bigjax.run import runtime
from experiments import cli, train
from tests.commands import ROOT, TINY, Commands, shared_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return shared_cache(tmp_path_factory)


@pytest.fixture
def refuse(cache, tmp_path, monkeypatch, capsys):
    """Call the command in this process, on its 8 devices; return what it answers."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    # The settings of this process are those of the tests.
    monkeypatch.setattr(runtime, "configure_jax", lambda: None)

    def call(*arguments: str) -> str:
        argv = ["train", *arguments, f"--workdir={tmp_path}/run"]
        with pytest.raises(SystemExit) as caught:
            cli.main(train.main, doc=train.__doc__, define_flags=train.define_flags, argv=argv)
        assert caught.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        lines = [line for line in said.err.splitlines() if not line.startswith("bigjax: run ")]
        assert lines[0].startswith("error: ")
        return "\n".join(lines).removeprefix("error: ")

    return call


def write_text(folder: Path, *texts: str) -> str:
    """Write text files and return the source that names them."""
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    return f"text:{folder}/*.txt"


MISTAKES = {
    "unknown flag": (["--workdri=x"], "unknown flag --workdri: did you mean --workdir[?]"),
    "unknown field": (
        ["--config.train.stepz=9"],
        "--config.train.stepz is not a field .*: did you mean train.steps[?]",
    ),
    "wrong type": (["--config.train.steps=many"], "--config.train.steps=many is not an int at least 1"),
    "missing file": (["--config=configs/quikstart.py"], "there is no config file .*: did you mean .*quickstart.py[?]"),
    "profile": (["--profile=9"], "--profile=9 is not a range of steps such as 10-12"),
    "profile of other steps": (["--profile=7-9"], "--profile=7-9 leaves the steps of the run, 1-8"),
    "processes": (["--process_id=2"], "--coordinator_address and --num_processes missing: .*"),
    "clash": (
        ["--config.train.microbatches=3"],
        "train.global_batch_size=8 is not divisible by train.microbatches=3: set train.microbatches=1",
    ),
    "batch": (
        ["--config.train.global_batch_size=9"],
        r"train.global_batch_size=9 in train.microbatches=1 gives 9 rows, not divisible by mesh.data=8 \(-1: all the "
        r"remaining devices\): set train.global_batch_size=8",
    ),
    "mesh": (["--config.mesh.fsdp=3"], "mesh.fsdp=3 does not divide the 8 devices at hand"),
    "mesh and model": (
        ["--config.mesh.tensor=8"],
        "blocks/attn/.*: axis (kv_)?heads of size 2 is not divisible by mesh.tensor=8; change the mesh or the size.*",
    ),
    "init_from": (["--config.init_from=/nowhere"], "/nowhere is not the folder of a run: it has no config.json"),
    "init_state": (["--config.init_state=/nowhere@3"], "/nowhere is not the folder of a run: it has no config.json"),
    "no step": (
        ["--config.init_state=/nowhere"],
        "init_state='/nowhere' does not name a run and a step: set it as in init_state=runs/NAME@1000",
    ),
    "source": (["--config.data.sources=text:/nowhere/*.txt"], ".*/nowhere/.*"),
    "vocabulary": (
        ["--config.model.vocab_size=255"],
        "data.tokenizer='bytes' has 256 ids, more than model.vocab_size=255: raise model.vocab_size to at least 256",
    ),
    "attention": (
        ["--config.model.dropout=0.1"],
        "model.attention='blocked' does not support model.dropout=0.1; these do: reference",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_leaves_no_folder(refuse, tmp_path, arguments, message):
    said = refuse(*TINY, *arguments)
    assert "\n" not in said
    assert re.fullmatch(message, said), said
    assert not (tmp_path / "run").exists()


def test_a_corpus_too_short_for_a_batch(refuse, tmp_path):
    source = write_text(tmp_path / "texts", "To be, or not to be." * 5, "That is the question." * 3)
    said = refuse(*TINY, f"--config.data.sources={source}", "--config.data.holdout=0")
    assert said == (
        "the training documents are shorter than one batch: 163 tokens make 6 rows of data.seq_len=32, fewer than "
        "train.global_batch_size=8; give more text or lower one of them"
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(refuse, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    said = refuse(*TINY)
    assert said == f"{tmp_path}/run is not empty and not the folder of a run: choose another --workdir"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_in_a_process_of_its_own_there_is_no_traceback_but_with_debug(cache, tmp_path):
    commands = Commands(cache)
    mistake = (*TINY, "--config.mesh.fsdp=3", f"--workdir={tmp_path}/run")
    plain = commands.run("experiments.train", *mistake, code=2).stderr
    debug = commands.run("experiments.train", *mistake, "--debug", code=2).stderr
    error = "error: mesh.fsdp=3 does not divide the 1 device at hand\n"
    first, _, rest = plain.partition("\n")
    assert (first[:12], rest) == ("bigjax: run ", error)
    assert "Traceback (most recent call last)" in debug
    assert debug.endswith(error)
    # After the mistake is mended the same folder is free.
    assert not (tmp_path / "run").exists()
