"""What users type first: one file of their own, a folder, names with commas and brackets, an empty file among many."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data import DataError, load_tokenizer, save_tokenizer
from bigjax.data.sources.opening import document_fraction, open_source, split_sources, tail_start
from bigjax.data.tokens.bpe import build_tokenizer, train_bpe

TEXT = "".join(f"Line {number} of a text that somebody has written.\n" for number in range(400))


def held_out(*specs, holdout=0.05, whole=False) -> tuple[list[str], list[str]]:
    sides = split_sources(specs, (), holdout, "text", whole=whole)
    train, tested = ([text for side in each for _, text in side.documents()] for each in sides)
    return train, tested


@pytest.mark.parametrize("holdout", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_something_is_always_held_out(count, holdout, tmp_path):
    texts = [f"{number}. {TEXT}" for number in range(count)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    train, tested = held_out(f"text:{tmp_path}/*.txt", holdout=holdout)
    assert train and tested
    if len(train) == len(tested) == count:  # the end of each
        assert [a + b for a, b in zip(train, tested, strict=True)] == texts
        # The cut is at a line, at most one before.
        assert len("".join(tested)) == pytest.approx(holdout * len("".join(texts)), abs=count * 60)
        assert all(text.startswith("Line ") for text in tested)
    else:
        assert sorted([*train, *tested]) == texts


def test_one_file_trains_with_the_defaults(tmp_path):
    (tmp_path / "mine.txt").write_text(TEXT)
    cfg = Config(
        ModelConfig(),
        DataConfig(sources=(f"text:{tmp_path}/mine.txt",), seq_len=32, cache_dir=str(tmp_path / "cache")),
        TrainConfig(global_batch_size=4),
    )
    text = data.build(cfg, slice(0, 4))
    assert text.eval is not None
    sizes = [source["bytes"] for side in ("train", "eval") for source in text.describe()[side]]
    assert sum(sizes) == len(TEXT) and sizes[1] / len(TEXT) == pytest.approx(0.05, abs=0.01)


def test_few_records_are_held_out_whole(tmp_path):
    records = [f"record {number}" for number in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": record}) + "\n" for record in records))
    train, tested = held_out(f"jsonl:{tmp_path}/a.jsonl", holdout=0.001, whole=True)
    assert tested == [min(records, key=document_fraction)] and sorted([*train, *tested]) == records
    train, tested = held_out(f"jsonl:{tmp_path}/a.jsonl", holdout=0.999, whole=True)
    assert train == [max(records, key=document_fraction)]


def test_the_end_starts_at_a_line_or_a_word():
    assert tail_start("one two three\nfour five", 0.3) == len("one two three\n")
    assert tail_start("one two three four", 0.2) == len("one two three ")
    assert tail_start("x" * 100, 0.05) == 95
    assert tail_start("xy", 0.05) == 1
    assert tail_start("x", 0.05) == 0
    assert tail_start("", 0.05) == 0


def test_an_empty_file_among_many_is_a_note(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} is not empty" if name != "b" else "")
        pq.write_table(pa.table({"text": pa.array(["x"] * (name != "b"), pa.string())}), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) if name != "b" else "")
    for spec, said in {
        "text:{}/*.txt": "{}/b.txt is empty",
        "jsonl:{}/*.jsonl": "{}/b.jsonl is empty",
        "parquet:{}/*.parquet": "{}/b.parquet is empty: it has no rows",
    }.items():
        source = open_source(spec.format(tmp_path), "text")
        assert source.notes == (said.format(tmp_path),)
        assert len(list(source.read())) == 2
    text = data.build(
        Config(
            data=DataConfig(sources=(f"text:{tmp_path}/*.txt",), holdout=0.0, seq_len=4),
            train=TrainConfig(global_batch_size=1),
        ),
        slice(0, 1),
    )
    assert text.notes == (f"{tmp_path}/b.txt is empty",)
    with pytest.raises(DataError, match=r"b\.txt is empty"):
        open_source(f"text:{tmp_path}/b.txt", "text")


@pytest.mark.parametrize("name", ["a,b.txt", "a[1].txt", "what?.txt", "a b*.txt"])
def test_a_file_is_found_by_its_name_whatever_that_is(name, tmp_path):
    (tmp_path / name).write_text("this one")
    (tmp_path / "a1.txt").write_text("another")
    assert [text for _, text in open_source(f"text:{tmp_path}/{name}", "text").read()] == ["this one"]


def test_folders_are_found_by_their_names_too(tmp_path):
    folder = tmp_path / "[corpus] of *" / "1?"
    folder.mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c.md"):
        (folder / name).write_text(name)
    for pattern in ("*.txt", "[ab].txt"):
        assert [text for _, text in open_source(f"text:{folder}/{pattern}", "text").read()] == ["a.txt", "b.txt"]
    with pytest.raises(DataError, match="no file matches"):
        open_source(f"text:{folder}/[de].txt", "text")


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
def test_a_folder_is_answered_with_what_to_type(kind, tmp_path):
    for name in ("1.md", "2.md", "notes.txt"):
        (tmp_path / name).write_text("text\nx\n")
    with pytest.raises(DataError, match=rf"is a folder: name the files in it, as in '{tmp_path}/\*\.md'"):
        open_source(f"{kind}:{tmp_path}/", "text")


def test_half_a_name_with_a_comma_is_answered_with_its_quotes():
    with pytest.raises(DataError, match=r"'b\.txt' is no source.*--config\.data\.sources=\"\('text:a,b\.txt',\)\""):
        open_source("b.txt", "text")


def test_the_folder_of_a_tokenizer_is_as_good_as_its_file(tmp_path):
    train_bpe([TEXT], 270, tmp_path)
    by_file = build_tokenizer(f"hf:{tmp_path}/tokenizer.json", [], tmp_path)
    assert build_tokenizer(f"hf:{tmp_path}", [], tmp_path).digest == by_file.digest
    save_tokenizer(by_file, tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").digest == by_file.digest
    with pytest.raises(DataError, match=r"the folder .*none has no tokenizer\.json"):
        (tmp_path / "none").mkdir()
        build_tokenizer(f"hf:{tmp_path}/none", [], tmp_path)
