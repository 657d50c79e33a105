"""A run is known by what its text holds, wherever that lies; a file that changed is named with both hashes."""

import hashlib
import json
import os
import re
import shutil
import time

import pytest

from bigjax.config import Config, DataConfig, LogConfig, ModelConfig, TrainConfig, strict
from bigjax.data import DataError, save_tokenizer
from bigjax.data.sources.readers import REMEMBERED, file_digest
from bigjax.data.tokens.tokenizers import ByteTokenizer
from bigjax.errors import UserError
from bigjax.run import identity
from bigjax.run.folder import RunFolder
from bigjax.science.sweeps import collect
from bigjax.science.sweeps.folder import SweepFolder
from experiments import train
from experiments.sweep.launch import Launch

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def config(sources, **data) -> Config:
    return Config(
        ModelConfig(vocab_size=256, num_layers=1, d_model=16, num_heads=2, max_seq_len=16),
        DataConfig(sources=tuple(sources), seq_len=16, holdout=0.0, **data),
        TrainConfig(global_batch_size=8, steps=2),
        log=LogConfig(tensorboard=False, plot=False),
    )


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_finished_run_is_that_of_its_text(tmp_path, capsys):
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(TEXT)
    cfg = config([f"text:{text}"])
    assert train.run(cfg, run) == 0
    result = json.loads((run / "result.json").read_text())
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(text, tmp_path / "elsewhere" / "renamed.txt")
    for same in (cfg, config([f"text:{tmp_path}/elsewhere/*.txt"])):
        capsys.readouterr()
        assert train.run(same, run) == 0
        assert "is complete" in capsys.readouterr().err
        assert identity.fingerprint(same) == result["fingerprint"]
    text.write_text(f"{TEXT}More.")
    message = rf"belongs to another text.*text\.txt: sha256 was {sha(TEXT)} and is {sha(f'{TEXT}More.')}"
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        train.run(cfg, run)
    assert json.loads((run / "result.json").read_text()) == result
    text.write_text(TEXT)
    assert train.run(cfg, run) == 0


def test_a_point_of_a_sweep_is_that_of_its_text(tmp_path):
    text, folder = tmp_path / "text.txt", SweepFolder(tmp_path / "sweep")
    text.write_text(TEXT)

    def points(place):
        return collect(lambda add: add(**{"train.seed": 3}), strict.to_config_dict(config([f"text:{place}"])))

    (point,) = points(text)
    folder.create()
    run = folder.place(point)
    shutil.copy(text, tmp_path / "other.txt")
    (moved,) = points(tmp_path / "other.txt")
    assert moved.fingerprint == point.fingerprint
    assert folder.place(moved) == run
    assert Launch(folder, [point]).open() == [point]
    text.write_text("Changed. " * 100)
    folder.place(moved)
    run.write_config(moved.cfg)
    (changed,) = points(tmp_path / "other.txt")
    assert changed.fingerprint == point.fingerprint
    (tmp_path / "other.txt").write_text("Changed. " * 100)
    (changed,) = points(tmp_path / "other.txt")
    with pytest.raises(UserError, match=rf"other\.txt: sha256 was {sha(TEXT)} and is {sha('Changed. ' * 100)}"):
        Launch(folder, [changed])


def test_held_out_text_and_tokenizers_count_too(tmp_path):
    for name, content in {"a.txt": TEXT, "b.txt": "Other. " * 50, "c.txt": TEXT}.items():
        (tmp_path / name).write_text(content)
    save_tokenizer(ByteTokenizer(), tmp_path / "one")
    save_tokenizer(ByteTokenizer(), tmp_path / "two")
    how = {"eval_sources": (f"text:{tmp_path}/b.txt",), "tokenizer": f"hf:{tmp_path}/one"}
    cfg, run = config([f"text:{tmp_path}/a.txt"], **how), RunFolder(tmp_path / "run")
    run.open(cfg)
    assert run.is_of(config([f"text:{tmp_path}/c.txt"], **{**how, "tokenizer": f"hf:{tmp_path}/two/tokenizer.json"}))
    assert run.check(config([f"text:{tmp_path}/c.txt"], **how)) == {
        "data.sources": [[f"text:{tmp_path}/a.txt"], [f"text:{tmp_path}/c.txt"]]
    }
    (tmp_path / "b.txt").write_text("Third. " * 50)
    with pytest.raises(UserError, match=rf"b\.txt: sha256 was {sha('Other. ' * 50)} and is {sha('Third. ' * 50)}"):
        run.check(cfg)
    (tmp_path / "b.txt").write_text("Other. " * 50)
    (tmp_path / "one" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"tokenizer_config\.json: sha256 was none \(no such file\) and is [0-9a-f]{12}"
    ):
        run.check(cfg)


def test_the_order_of_files_is_part_of_a_text_and_their_names_are_not(tmp_path):
    for folder, names in {"a": "12", "b": "xy", "c": "21"}.items():
        (tmp_path / folder).mkdir()
        for name, content in zip(names, ("first " * 30, "second " * 30), strict=True):
            (tmp_path / folder / f"{name}.txt").write_text(content)
    same, named, turned = (identity.fingerprint(config([f"text:{tmp_path}/{folder}/*.txt"])) for folder in "abc")
    assert same == named != turned
    with pytest.raises(DataError, match="no file matches"):
        identity.fingerprint(config([f"text:{tmp_path}/none/*.txt"]))


def test_what_is_no_file_keeps_its_fingerprint():
    assert identity.fingerprint(Config()) == strict.fingerprint(Config())
    made = config(["copy:10:8", "shakespeare-passages"])
    assert identity.fingerprint(made) == strict.fingerprint(made)


def test_the_hash_of_a_large_file_is_kept_until_it_changes(tmp_path, cache, monkeypatch):
    path, content = tmp_path / "large.txt", b"a" * REMEMBERED
    path.write_bytes(content)
    before = path.stat()
    assert file_digest(path, cache) == hashlib.sha256(content).hexdigest()
    assert not list(cache.glob("digests/*"))  # a change within the resolution of times would not show
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    cache.mkdir(exist_ok=True)
    for _ in range(2):
        assert file_digest(path, cache) == hashlib.sha256(content).hexdigest()
    (kept,) = cache.glob("digests/*")
    assert kept.read_text() == hashlib.sha256(content).hexdigest()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock that files are stamped with ticks
        path.write_bytes(b"b" + content[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(path, cache) == hashlib.sha256(b"b" + content[1:]).hexdigest()
