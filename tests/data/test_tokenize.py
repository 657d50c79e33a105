"""Tokenising in parts: every document once, the same bytes for any number of workers, and what is finished stays."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bigjax import data
from bigjax.data import DataError
from bigjax.data.sources.opening import document_fraction, open_source
from bigjax.data.stored.corpus import open_corpus
from bigjax.data.tokens import parts
from bigjax.data.tokens.tokenizers import ByteTokenizer, load_tokenizer
from tests.commands import mounted
from tests.data.test_stored import run_of

COMMAND = [sys.executable, "-m", "experiments.tokenize"]
TEXTS = [f"document {i} " * (i % 17 + 1) + "ä\n" for i in range(300)]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def corpus(tmp_path):
    for number, some in enumerate(np.array_split(TEXTS, 3)):
        lines = "".join(json.dumps({"text": str(text)}) + "\n" * (1 + (i % 3 == 0)) for i, text in enumerate(some))
        (tmp_path / f"{number}.jsonl").write_text(lines)
    return f"jsonl:{tmp_path}/*.jsonl"


def command(corpus, out, *more):
    return [*COMMAND, f"--source={corpus}", f"--out={out}", "--tokenizer=bytes", "--part_mb=0.002", *more]


def files(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for side in parts.SIDES for path in (out / side).glob("*.[bi]*")
    }


@pytest.mark.parametrize("part_bytes", [1, 97, 1000, 4321, 10**9])
def test_parts_have_every_document_once(corpus, part_bytes):
    found = parts.parts_of(corpus, part_bytes)
    texts = [text for part in found for piece in part for _, text in parts.read_piece("jsonl", piece, "text")]
    assert texts == [text for _, text in open_source(corpus, "text").read()] == TEXTS
    if part_bytes == 10**9:
        assert len(found) == 1


def test_small_files_share_a_part(tmp_path):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:03}.txt").write_text(text)
    found = parts.parts_of(f"text:{tmp_path}/*.txt", 1000)
    assert 10 < len(found) < 60 and all(sum(piece.size for piece in part) <= 1000 for part in found)
    texts = [text for part in found for piece in part for _, text in parts.read_piece("text", piece, "")]
    assert texts == TEXTS


@pytest.mark.parametrize("part_bytes", [500, 10**9])
def test_shards_are_the_tokens_of_the_texts(corpus, tmp_path, part_bytes):
    out = tmp_path / "out"
    for side in parts.SIDES:
        (out / side).mkdir(parents=True)
    found, told = parts.parts_of(corpus, part_bytes), []
    how = (ByteTokenizer(), "text", 0.2, told.append)
    rows = [parts.write_part(out, number, "jsonl", part, *how) for number, part in enumerate(found)]
    sizes = parts.write_manifests(out, rows)
    held_out = [text for text in TEXTS if document_fraction(text) < 0.2]
    assert {side: documents for side, (documents, _) in sizes.items()} == {
        "train": len(TEXTS) - len(held_out),
        "eval": len(held_out),
    }
    assert sum(told) == sum(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
    for side, held_out in (("train", False), ("eval", True)):
        stored = open_corpus(f"{out}/{side}/*.bin", tmp_path)
        kept = [text.encode() for text in TEXTS if (document_fraction(text) < 0.2) == held_out]
        assert stored.read(0, len(stored)).astype(np.uint8).tobytes() == b"".join(kept)
        np.testing.assert_array_equal(stored.document_starts(0, len(stored)), np.cumsum([0, *map(len, kept)])[:-1])
        assert stored.text_bytes == len(b"".join(kept))
    cfg = run_of(out / "train", eval_sources=(f"tokens:{out}/eval/*.bin",))
    data.build(cfg, slice(0, 8)).train.batch(0)

    class Other(ByteTokenizer):
        digest = "another"

    with pytest.raises(DataError, match="was made with another tokenizer"):
        data.build(cfg, slice(0, 8), Other())


def test_a_file_that_changes_is_named(corpus, tmp_path):
    found = parts.parts_of(corpus, 10**9)
    (tmp_path / "1.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(DataError, match=r"1\.jsonl has changed since the work began"):
        list(parts.read_piece("jsonl", found[0][1], "text"))


def test_the_command_and_what_it_refuses(corpus, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(command(corpus, out, "--workers=2", "--holdout=0.1"), capture_output=True, text=True)
    assert done.returncode == 0 and "MB/s" in done.stderr, done.stderr
    assert load_tokenizer(out).digest == "bytes"
    stored = [open_corpus(f"{out}/{side}/*.bin", tmp_path) for side in parts.SIDES]
    assert sum(map(len, stored)) == sum(len(text.encode()) for text in TEXTS)
    again = subprocess.run(command(corpus, out, "--holdout=0.2"), capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr == f"error: {out} holds the tokens of something else (holdout): choose another --out\n"


@pytest.mark.faults
def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path):
    found = []
    for workers in (1, 2, 4):
        out = tmp_path / f"out{workers}"
        subprocess.run(command(corpus, out, f"--workers={workers}"), check=True, capture_output=True)
        found.append(files(out))
    assert len(found[0]) > 20 and found[0] == found[1] == found[2]


@pytest.mark.faults
def test_two_machines_share_the_work_and_a_kill_costs_nothing_finished(corpus, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command(corpus, whole, "--workers=1"), check=True, capture_output=True)
    for _ in range(3):
        running = subprocess.Popen(
            command(corpus, out, "--workers=2"), start_new_session=True, stderr=subprocess.DEVNULL
        )
        deadline, before = time.monotonic() + 60, len(list(out.glob(".work/0*.json")))
        while len(list(out.glob(".work/0*.json"))) < before + 3 and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob(".work/0*.json")}
    shards = {
        name: (out / name).stat().st_mtime_ns
        for name in files(out)
        if (out / ".work" / f"{name[6:12]}.json") in finished
    }
    assert finished and shards
    both = [subprocess.Popen(command(corpus, out, "--workers=1"), stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert files(out) == files(whole)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert {name: (out / name).stat().st_mtime_ns for name in shards} == shards
    assert not list(out.glob("*/.0*"))


@pytest.mark.faults
def test_a_full_disk_is_one_sentence(corpus, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=128k", "none") as disk:
        (disk / "other").write_bytes(bytes(2**16))
        done = subprocess.run(command(corpus, disk / "out", "--part_mb=1"), capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "No space left" in done.stderr, (
            done.stderr
        )
        assert len(done.stderr.splitlines()) == 1
        (disk / "other").unlink()
        subprocess.run(command(corpus, disk / "out", "--part_mb=1"), check=True, capture_output=True)
