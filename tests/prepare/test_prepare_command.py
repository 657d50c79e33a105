"""The command: the same bytes for any number of workers and after kills, what it reports, and what it refuses."""

import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigjax.prepare.pipeline import Preparation
from bigjax.run import lease
from experiments import cli
from experiments import prepare as command
from tests.commands import ROOT
from tests.prepare import corpus

CONFIG = """
from bigjax.prepare.pipeline import declare

def get_config():
    return declare({})
"""

OWN = "tests.prepare.own_steps"


@pytest.fixture
def raw(tmp_path) -> Path:
    records, _, _ = corpus.planted(100)
    return corpus.write_jsonl(tmp_path / "raw.jsonl", records)


def config(folder: Path, declared: str) -> Path:
    path = folder / "config.py"
    path.write_text(CONFIG.format(declared))
    return path


@pytest.fixture
def prepare(tmp_path, capsys, monkeypatch):
    """Prepare in this process; get the exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(declared: str, sources: str, out: str, *more: str) -> tuple[int, str, str]:
        argv = [
            "prepare",
            "--workers=1",
            f"--config={config(tmp_path, declared)}",
            f"--config.sources={sources}",
            f"--out={out}",
        ]
        status = 0
        try:
            cli.main(command.main, doc="", define_flags=command.define_flags, schema=Preparation, argv=[*argv, *more])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


STEPS = f"steps=('exact_duplicates', '{OWN}:short', 'near_duplicates'), shard_mb=0.02"


def contents(out: Path) -> dict[str, str]:
    """Return the sha256 of every prepared file and of the manifest."""
    paths = [*out.glob("data/*"), out / "manifest.json", out / "report.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_workers_change_nothing(prepare, raw, tmp_path):
    found = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        status, _, said = prepare(STEPS, f"jsonl:{raw}", str(out), f"--workers={workers}")
        assert (status, said) == (0, "")
        found.append(contents(out))
    assert len(found[0]) > 4
    assert found[0] == found[1]
    manifest = json.loads((tmp_path / "out1" / "manifest.json").read_text())
    for name, file in manifest["files"].items():
        content = (tmp_path / "out1" / name).read_bytes()
        assert file == {
            "records": content.count(b"\n"),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    assert sum(piece["stop"] - piece["start"] for piece in manifest["sources"]) == raw.stat().st_size


@pytest.mark.exhaustive
def test_four_workers_change_nothing(prepare, raw, tmp_path):
    for workers in (1, 4):
        assert prepare(STEPS, f"jsonl:{raw}", str(tmp_path / f"out{workers}"), f"--workers={workers}")[0] == 0
    assert contents(tmp_path / "out1") == contents(tmp_path / "out4")


def test_the_report_adds_up(prepare, raw, tmp_path):
    status, said, _ = prepare(STEPS, f"jsonl:{raw}", "out")
    assert status == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    records = [json.loads(line) for line in raw.read_text().splitlines()]
    first = list({record["text"]: record for record in reversed(records)}.values())
    even = [record for record in first if record["id"] % 2 == 0]
    exact, own, near = report["steps"]
    assert report["records"] == len(records)
    assert report["bytes"] == sum(len(record["text"].encode()) for record in records)
    assert exact["dropped"]["repeated"][0] == len(records) - len(first)
    assert own["dropped"] == {"short": [len(first) - len(even), own["bytes"] - own["kept_bytes"]]}
    assert own["changed"] == 0  # its text is as it was
    kept = corpus.read_folder(tmp_path / "out" / "data")
    assert near["kept"] == report["kept"] == len(kept) == len(even) - near["dropped"]["alike"][0]
    assert {record["id"] for record in kept} < {record["id"] for record in even}
    assert all(record["words"] == len(record["text"].split()) for record in kept)
    assert sum(count for _, count in report["read_histogram"]) == len(records)
    assert sum(count for _, count in report["written_histogram"]) == len(kept)
    assert len(near["examples"]["dropped alike"]) == min(3, near["dropped"]["alike"][0])
    assert f"kept {len(kept)} of {len(records)} records" in said
    page = (tmp_path / "out" / "index.html").read_text()
    assert "near_duplicates" in page and "http" not in page.replace("</html>", "")
    assert not (tmp_path / "out" / "work").exists()


def test_a_source_reads_what_was_prepared(prepare, raw, tmp_path):
    from bigjax.data.sources.opening import open_source

    assert prepare(STEPS, f"jsonl:{raw}", "out")[0] == 0
    source = open_source(f"jsonl:{tmp_path}/out/data/*.jsonl", "text")
    assert [text for _, text in source.read()] == [r["text"] for r in corpus.read_folder(tmp_path / "out" / "data")]


def test_a_rule_that_drops_over_half_is_said(prepare, raw):
    status, _, said = prepare("steps=('gopher_quality',), gopher_quality={'min_words': 1000}", f"jsonl:{raw}", "out")
    assert status == 2
    assert "no record is left: out/index.html shows which rules dropped them" in said
    status, _, said = prepare(f"steps=('{OWN}:short', 'exact_duplicates')", f"jsonl:{raw}", "out2")
    assert (status, said) == (0, "")
    status, _, said = prepare("steps=('gopher_quality',), gopher_quality={'min_stop_words': 7}", f"jsonl:{raw}", "out3")
    assert status == 0
    assert "warning: gopher_quality: the rule gopher_enough_stop_words dropped" in said, said


def typed(path: Path, raw: Path, out: Path, workers: int) -> list[str]:
    flags = [f"--config={path}", f"--config.sources=jsonl:{raw}", f"--out={out}", f"--workers={workers}"]
    return [sys.executable, "-m", "experiments.prepare", *flags]


def test_a_command_that_ended_midway_goes_on(prepare, raw, tmp_path, monkeypatch):
    monkeypatch.setenv("KILL_ONCE", str(tmp_path / "broken"))
    steps = f"steps=('exact_duplicates', '{OWN}:broken_once', 'near_duplicates'), shard_mb=0.02"
    status, _, said = prepare(steps, f"jsonl:{raw}", "out")
    assert status == 2 and said.startswith("error: step broken_once, record ") and said.endswith(": OSError: broken\n")
    status, said, _ = prepare(steps, f"jsonl:{raw}", "out")
    assert status == 0 and " 0 done before" not in said.splitlines()[0]
    assert prepare(steps, f"jsonl:{raw}", "fresh")[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_table_is_split_filled_and_scaled(prepare, tmp_path):
    rows = [f"{i},{'' if i % 7 == 0 else i * 2},{'red' if i % 3 else 'blue'}" for i in range(1, 101)]
    (tmp_path / "t.csv").write_text("\n".join(["id,size,colour", *rows, rows[0]]) + "\n")
    declared = """steps=("exact_duplicates", "sides", "missing", "categories", "scale"), sides={"stratify": "colour"},
        categories={"columns": ("colour",)}, scale={"columns": ("size",)}"""
    status, said, error = prepare(declared, "csv:t.csv", "out")
    assert (status, error) == (0, "")
    assert "--config.data.sources='jsonl:out/train/*.jsonl' --config.data.eval_sources='jsonl:out/eval/*.jsonl'" in said
    train, held_out = (corpus.read_folder(tmp_path / "out" / side) for side in ("train", "eval"))
    assert (len(train), len(held_out)) == (90, 10)
    assert set(train[0]) == {"id", "size", "colour"} and {record["colour"] for record in train} == {0, 1}
    assert sum(record["size"] for record in train) == pytest.approx(0, abs=1e-9)
    fitted = json.loads((tmp_path / "out" / "fitted" / "scale.json").read_text())
    assert set(fitted["size"]) == {"minus", "over"}


@pytest.mark.faults
@pytest.mark.parametrize("workers", [2, 1])
def test_a_killed_worker_is_said_and_the_command_goes_on(raw, tmp_path, workers):
    steps = f"steps=('exact_duplicates', '{OWN}:kill_once', 'near_duplicates'), shard_mb=0.02"
    path = config(tmp_path, steps)
    variables = os.environ | {"KILL_ONCE": str(tmp_path / "killed"), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = []
    for out in ("out", "out", "fresh"):
        arguments = typed(path, raw, tmp_path / out, workers)
        ended.append(subprocess.run(arguments, env=variables, cwd=ROOT, capture_output=True, text=True))
    killed, done, fresh = ended
    if workers == 1:
        assert killed.returncode == -signal.SIGKILL
    else:
        assert killed.returncode == 2
        assert "a worker process was killed" in killed.stderr and "Traceback" not in killed.stderr
    assert (done.returncode, fresh.returncode) == (0, 0), done.stderr
    assert "0 done before" not in done.stdout.splitlines()[0]
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.faults
def test_any_number_of_kills_changes_nothing(raw, tmp_path):
    path, rng = config(tmp_path, STEPS.replace("0.02", "0.005")), random.Random(0)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    kills = finished = 0
    while True:
        arguments = typed(path, raw, tmp_path / "out", 2)
        started = subprocess.Popen(arguments, env=variables, cwd=ROOT, start_new_session=True, stdout=-3, stderr=-3)
        if kills < 8:
            # Every kill comes after a shard more is finished, so that the command gets to its end in the end.
            counts, before = tmp_path / "out" / "work", finished
            while started.poll() is None and finished <= before:
                finished = len(list(counts.glob("*/*.counts.json")))
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
        if kills < 8 and started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            kills += 1
            continue
        assert started.wait() == 0
        break
    assert kills >= 3
    assert subprocess.run(typed(path, raw, tmp_path / "fresh", 1), env=variables, cwd=ROOT).returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("steps, sources, said", [
    ("steps=('exact_duplicates',)", "jsonl:none/*.jsonl", "no file matches 'none/*.jsonl'"),
    ("steps=('exact_duplicates',)", "jsonl:empty", "is a folder"),
    ("steps=('exact_duplicates',)", "text:latin.txt", "latin.txt is not UTF-8: byte 0xe9 at byte offset 3"),
    ("steps=('exact_duplicates',)", "jsonl:latin.txt", "latin.txt, line 1, is not UTF-8"),
    ("steps=('exact_duplicates',)", "jsonl:broken.jsonl", "broken.jsonl, line 1: not JSON"),
    ("steps=('exact_duplicates',), shard_mb=0.00002", "jsonl:broken.jsonl", "broken.jsonl, byte 0: not JSON"),
    ("steps=('exact_duplicates',), shard_mb=0.000002", "jsonl:latin.txt", "latin.txt, byte 0: not UTF-8"),
    ("steps=('exact_duplicates',)", "pdf:a.pdf", "sources: 'pdf:a.pdf' is no source of records"),
    ("steps=('gopher_quality',), text_key='body'", "jsonl:raw.jsonl", "there is no column 'body' but id, text"),
    ("steps=('gopher_quality',), text_key='id'", "jsonl:raw.jsonl", "column 'id' holds a int, not a text"),
    ("steps=('exact_duplicates',), exact_duplicates={'columns': ('no',)}", "jsonl:raw.jsonl", "no column 'no'"),
    ("steps=('gofer',)", "jsonl:raw.jsonl", "steps='gofer' is not one of"),
    ("steps=('c4', 'c4')", "jsonl:raw.jsonl", "steps: c4 stands there twice"),
    ("steps=('tests.prepare.own_steps:no',)", "jsonl:raw.jsonl", "tests.prepare.own_steps has no 'no'"),
    ("steps=('tests.prepare.own_steps:number',)", "jsonl:raw.jsonl", "is a int: a step is a function"),
    ("steps=('tests.prepare.own_steps:broken',)", "jsonl:raw.jsonl", "step broken,"),
    ("steps=('c4',), c4={'min_words': 3}", "jsonl:raw.jsonl", "c4.min_words is not a field"),
    ("steps=('decontaminate',)", "jsonl:raw.jsonl", "decontaminate.files is empty"),
    ("steps=('decontaminate',), decontaminate={'files': ('no.txt',)}", "jsonl:raw.jsonl", "no.txt cannot be read"),
    ("steps=()", "jsonl:raw.jsonl", "steps is empty"),
    ("steps=('exact_duplicates',)", "jsonl:side.jsonl", "a column may not be called '_side'"),
    ("steps=('tests.prepare.own_steps:outside',)", "jsonl:raw.jsonl", "is no name of a folder"),
    ("steps=('c4',), gofer={'min_words': 3}", "jsonl:raw.jsonl", "gofer is not a field"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(prepare, raw, tmp_path, steps, sources, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "side.jsonl").write_text('{"text": "a", "_side": "../.."}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n{"text": "b"}\n')
    status, _, error = prepare(steps, sources, "out")
    assert status == 2
    assert said in error
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 700


def test_a_folder_with_something_else_is_left_alone(prepare, raw, tmp_path):
    steps = "steps=('exact_duplicates',)"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    status, _, said = prepare(steps, f"jsonl:{raw}", "mine")
    assert (status, said) == (2, "error: mine is not an empty folder: choose another --out\n")
    assert prepare(steps, f"jsonl:{raw}", "out")[0] == 0
    status, said, _ = prepare(steps, f"jsonl:{raw}", "out")
    assert (status, said) == (0, "out is prepared already: nothing to do\n")
    status, _, said = prepare(steps + ", seed=1", f"jsonl:{raw}", "out")
    assert (status, said) == (2, "error: out was prepared with another config: choose another --out, or remove it\n")
    raw.write_text(raw.read_text() + '{"id": 0, "text": "more"}\n')
    status, _, said = prepare(steps, f"jsonl:{raw}", "out")
    assert status == 2 and "the sources have changed since out was begun" in said


@pytest.mark.parametrize("name, source", [("prepare", "gpt:d12"), ("train", "prepare/web_text")])
def test_the_config_of_another_command_is_refused(name, source, capsys):
    module = importlib.import_module(f"experiments.{name}")
    schema = {"schema": Preparation} if name == "prepare" else {}
    with pytest.raises(SystemExit, match="2"):
        cli.main(module.main, doc="", define_flags=module.define_flags, argv=[name, f"--config={source}"], **schema)
    assert capsys.readouterr().err.startswith(f"error: {source} is no config for this command: it declares ")


def test_two_commands_do_not_write_one_folder(prepare, raw, tmp_path):
    (tmp_path / "out").mkdir()
    owner, _ = lease.take(tmp_path / "out" / "prepare.lock")
    status, _, said = prepare("steps=('exact_duplicates',)", f"jsonl:{raw}", "out")
    assert status == 2 and said.startswith("error: out is being written by another command: host ")
    lease.release(tmp_path / "out" / "prepare.lock", owner)
    assert prepare("steps=('exact_duplicates',)", f"jsonl:{raw}", "out")[0] == 0
