"""The token cache: made once, whole or not at all, verified when opened."""

import json
import multiprocessing
import os
import threading

import numpy as np
import pytest

from bigjax.data import DataError
from bigjax.data.sources.opening import split_sources
from bigjax.data.tokens.bpe import build_tokenizer
from bigjax.data.tokens.cache import cache_folder, make_once
from bigjax.data.tokens.shards import open_shard, tokenize, write_shard
from bigjax.data.tokens.tokenizers import ByteTokenizer
from tests.commands import mounted

DOCUMENTS = [("a", "first"), ("b", "second ä"), ("c", "")]


class Ended(ByteTokenizer):
    """Bytes, and id 256 after every document."""

    vocab_size = 257
    eos_id = 256


def entries(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_nothing_is_kept_of_a_file_that_grew_after_it_was_hashed(tmp_path):
    corpus, root = tmp_path / "a.txt", tmp_path / "cache"
    corpus.write_text("as it was")
    (side,), _ = split_sources((f"text:{corpus}",), (), 0.0, "text")
    corpus.write_text("as it was, and more")
    with pytest.raises(DataError, match=r"a\.txt changed while it was read"):
        tokenize(side, ByteTokenizer(), root)
    corpus.write_text("as it was")
    # What was made of the other text would be found here, under the digest of this one.
    assert tokenize(side, ByteTokenizer(), root).tokens.astype(np.uint8).tobytes() == b"as it was"


@pytest.fixture
def shard_folder(tmp_path):
    folder = tmp_path / "shard"
    make_once(folder, lambda temporary: write_shard(temporary, DOCUMENTS, ByteTokenizer()))
    return folder


def test_a_shard_gives_its_documents_back(shard_folder):
    shard = open_shard(shard_folder)
    texts = [shard.tokens[a:b].astype(np.uint8).tobytes().decode() for a, b in zip(shard.offsets, shard.offsets[1:])]  # noqa: B905
    assert list(zip(shard.names(), texts, strict=True)) == DOCUMENTS
    assert shard.num_bytes == sum(len(text.encode()) for _, text in DOCUMENTS) == len(shard.tokens)
    assert shard.num_documents == 3


def test_every_document_ends_with_the_end_of_text(tmp_path):
    write_shard(tmp_path, DOCUMENTS, Ended())
    shard = open_shard(tmp_path)
    assert (shard.tokens[shard.offsets[1:] - 1] == 256).all()
    assert (shard.tokens == 256).sum() == 3
    assert shard.tokens.dtype == np.uint16


def test_large_vocabularies_take_32_bits(tmp_path):
    class Large(ByteTokenizer):
        vocab_size = 70_000
        eos_id = 69_999

    write_shard(tmp_path, DOCUMENTS, Large())
    assert open_shard(tmp_path).tokens.dtype == np.uint32
    assert open_shard(tmp_path).tokens[-1] == 69_999


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_a_damaged_shard_is_never_read(shard_folder, name, damage):
    file = shard_folder / name
    if damage == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with pytest.raises(DataError, match=f"delete {shard_folder}"):
        open_shard(shard_folder)


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half").write_text("half")
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        make_once(tmp_path / "entry", fail)
    assert entries(tmp_path) == []
    make_once(tmp_path / "entry", lambda folder: (folder / "whole").write_text("whole"))
    assert entries(tmp_path) == ["entry"]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:270"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, tokenizer):
    corpus = tmp_path / "a.txt"
    corpus.write_text("some words, and some more. " * 100)
    (side,), _ = split_sources((f"text:{corpus}",), (), 0.0, "text")
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64k", "none") as disk:
        with pytest.raises(OSError, match="No space left"), (disk / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(2**12))
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): make room, or set data"):
            tokenize(side, build_tokenizer(tokenizer, [side], disk), disk)
        (disk / "other").unlink()
        assert tokenize(side, build_tokenizer(tokenizer, [side], disk), disk).num_bytes == 2700
        assert list(disk.rglob("*.tmp")) == []


def test_who_comes_second_waits_and_does_not_write(tmp_path):
    started, proceed, calls = threading.Event(), threading.Event(), []

    def slow(folder):
        calls.append(folder)
        started.set()
        assert proceed.wait(30)

    first = threading.Thread(target=make_once, args=(tmp_path / "entry", slow))
    first.start()
    assert started.wait(30)
    second = threading.Thread(target=make_once, args=(tmp_path / "entry", slow))
    second.start()
    proceed.set()
    first.join(30)
    second.join(30)
    assert len(calls) == 1
    assert entries(tmp_path) == ["entry"]


def test_a_race_without_locks_ends_well(tmp_path):
    """Another process puts the entry in place while this one writes, as happens where locks do not reach."""

    def overtaken(folder):
        (tmp_path / "entry").mkdir()
        (tmp_path / "entry" / "theirs").touch()
        (folder / "ours").touch()

    make_once(tmp_path / "entry", overtaken)
    assert entries(tmp_path) == ["entry"]
    assert entries(tmp_path / "entry") == ["theirs"]


def _tokenize(spec, root, barrier, results):
    train, _ = split_sources((spec,), (), 0.0, "text")
    barrier.wait(60)
    results.put(tokenize(train[0], ByteTokenizer(), root).digest)


def test_two_processes_end_with_one_shard(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 1000)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (f"text:{tmp_path}/a.txt", tmp_path / "cache", barrier, results)
    processes = [context.Process(target=_tokenize, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    digests = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(digests) == 1
    assert len(entries(tmp_path / "cache" / "tokens")) == 1


def test_the_key_follows_content_split_and_tokenizer(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(40)))
    spec, root = f"jsonl:{tmp_path}/a.jsonl", tmp_path / "cache"

    def folders(holdout, tokenizer):
        train, held_out = split_sources((spec,), (), holdout, "text")
        return {tokenize(side, tokenizer, root).folder for side in train + held_out}

    whole, halves = folders(0.0, ByteTokenizer()), folders(0.5, ByteTokenizer())
    assert (len(whole), len(halves)) == (1, 2)
    assert folders(0.5, ByteTokenizer()) == halves
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "another"}) + "\n")
    assert len(whole | halves | folders(0.0, ByteTokenizer())) == 4


def test_the_cache_folder_is_the_users_unless_set(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(None) == tmp_path / "xdg" / "bigjax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(None) == tmp_path / "home" / ".cache" / "bigjax"
    assert cache_folder(str(tmp_path / "own")) == tmp_path / "own"
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"set data\.cache_dir"):
        cache_folder(str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # nothing can be made there
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder(None) == tmp_path / f"bigjax-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"set data\.cache_dir"):
        cache_folder(None)
