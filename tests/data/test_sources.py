"""Sources: what they yield, what they reject by name, and which documents they hold out."""

import bz2
import gzip
import hashlib
import json
import lzma
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigjax.data import DataError
from bigjax.data.sources import shakespeare
from bigjax.data.sources.opening import document_fraction, open_source, split_sources
from bigjax.data.sources.readers import file_digest

TEXTS = ["first document\n", "zweites Dokument: äöü\r\n", "第三の文書 🎉"]


def write_files(folder):
    """Write TEXTS as text, jsonl and parquet."""
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_bytes(text.encode())
    lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))
    (folder / "all.jsonl").write_text(lines)
    pq.write_table(pa.table({"text": TEXTS, "id": [0, 1, 2]}), folder / "all.parquet")


@pytest.mark.parametrize("spec", ["text:*.txt", "jsonl:all.jsonl", "parquet:*.parquet"])
def test_local_files_give_their_documents(spec, tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    source = open_source(spec, "text")
    for _ in range(2):
        assert [text for _, text in source.read()] == TEXTS
    names = [name for name, _ in source.read()]
    assert len(set(names)) == 3


LONG = "a document longer than the field limit of the csv module\n" * 5000

FORMS = {
    "gzip, by pieces": (
        "text:x",
        lambda path: path.write_bytes(gzip.compress(b"one ") + gzip.compress(b"two")),
        "one two",
    ),
    "bzip2": ("csv:x", lambda path: path.write_bytes(bz2.compress(b"id,text\n1,b\n")), "b"),
    "zstd": ("jsonl:x", lambda path: path.write_bytes(pa.compress(b'{"text": "b"}\n', "zstd", asbytes=True)), "b"),
    "a mark of the byte order": ("jsonl:x", lambda path: path.write_text('\ufeff{"text": "first"}\n'), "first"),
    "a table with long texts": ("csv:x", lambda path: path.write_text(f'id,text\n1,"{LONG}"\n'), LONG),
    "categories": ("parquet:x", lambda path: write_column(path, pa.array(["b"]).dictionary_encode()), "b"),
    "views": ("parquet:x", lambda path: write_column(path, pa.array(["b"], pa.string_view())), "b"),
}


def write_column(path, texts):
    pq.write_table(pa.table({"text": texts}), path)


@pytest.mark.parametrize("case", FORMS)
def test_forms_that_other_programs_write_are_read(case, tmp_path, monkeypatch):
    spec, write, text = FORMS[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x")
    assert [found for _, found in open_source(spec, "text").read()] == [text]


def test_the_digest_depends_on_content_only(tmp_path):
    specs = []
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        write_files(tmp_path / name / "sub")
        specs.append(f"text:{tmp_path}/{name}/**/*.txt")
    first, second = (open_source(spec, "text") for spec in specs)
    assert first.digest == second.digest
    assert list(first.read()) == list(second.read())
    (tmp_path / "b/sub/1.txt").write_text("changed")
    assert open_source(specs[1], "text").digest != first.digest


@pytest.mark.parametrize("spec", ["text:*.txt", "jsonl:all.jsonl", "parquet:*.parquet"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_file_that_changes_before_it_was_read_is_named(spec, when, tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    source = open_source(spec, "text")
    name = next(iter(tmp_path.glob(spec.partition(":")[2]))).name
    documents = source.read()
    if when == "between":
        next(documents)
    changed = [text.replace("n", "m") for text in TEXTS]  # every file can still be read, whole
    monkeypatch.setattr(f"{__name__}.TEXTS", changed)
    write_files(tmp_path)
    with pytest.raises(DataError, match=r"changed while it was read: run again"):
        list(documents)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name} cannot be read.*No such file"):
        list(source.read())


def bad_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)


BAD = {
    "no match": ("text:*.md", lambda d: None, r"no file matches '\*\.md'"),
    "empty file": ("text:*.txt", lambda d: (d / "e.txt").touch(), r"e\.txt is empty"),
    "not UTF-8": (
        "text:*.txt",
        lambda d: (d / "b.txt").write_bytes(b"good\xff"),
        r"b\.txt is not UTF-8: byte 0xff at byte offset 4",
    ),
    "jsonl not UTF-8": (
        "jsonl:x.jsonl",
        lambda d: (d / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n'),
        r"x\.jsonl, line 2, is not UTF-8: byte 0xff at byte offset 24",
    ),
    "jsonl no key": (
        "jsonl:x.jsonl",
        lambda d: (d / "x.jsonl").write_text('{"text": "a"}\n\n{"body": "b"}\n'),
        r"x\.jsonl, line 3: no key 'text', only 'body'",
    ),
    "jsonl not JSON": ("jsonl:x.jsonl", lambda d: (d / "x.jsonl").write_text("{oops\n"), r"x\.jsonl, line 1: not JSON"),
    "jsonl no object": ("jsonl:x.jsonl", lambda d: (d / "x.jsonl").write_text("[1]\n"), r"line 1: .* not list"),
    "jsonl no string": (
        "jsonl:x.jsonl",
        lambda d: (d / "x.jsonl").write_text('{"text": 3}\n'),
        r"line 1: .* int, not a",
    ),
    "parquet no column": (
        "parquet:x.parquet",
        lambda d: bad_parquet(d / "x.parquet", body=["a"]),
        r"x\.parquet: no column 'text', only 'body'",
    ),
    "parquet no string": ("parquet:x.parquet", lambda d: bad_parquet(d / "x.parquet", text=[1]), r"holds int64"),
    "parquet null": ("parquet:x.parquet", lambda d: bad_parquet(d / "x.parquet", text=["a", None]), r"row 1: .* null"),
    "parquet no rows": (
        "parquet:x.parquet",
        lambda d: pq.write_table(pa.schema([("text", pa.string())]).empty_table(), d / "x.parquet"),
        r"x\.parquet is empty",
    ),
    "not parquet": (
        "parquet:x.parquet",
        lambda d: (d / "x.parquet").write_text("text"),
        r"x\.parquet cannot be read as",
    ),
    "half a character": (
        "jsonl:x.jsonl",
        lambda d: (d / "x.jsonl").write_text('{"text": "a"}\n{"text": "a \\ud83d b"}\n'),
        r"x\.jsonl, line 2: \\ud83d is half a surrogate pair",
    ),
    "a number of too many digits": (
        "jsonl:x.jsonl",
        lambda d: (d / "x.jsonl").write_text(f'{{"text": "a", "id": {"1" * 5000}}}\n'),
        r"x\.jsonl, line 1: JSON that Python does not read",
    ),
    "too many brackets": (
        "jsonl:x.jsonl",
        lambda d: (d / "x.jsonl").write_text(f'{{"text": "a", "id": {"[" * 100_000}{"]" * 100_000}}}\n'),
        r"x\.jsonl, line 1: JSON that Python does not read",
    ),
    "a link that leads nowhere": (
        "text:*.txt",
        lambda d: [(d / "a.txt").write_text("a"), (d / "b.txt").symlink_to(d / "gone.txt")],
        r"b\.txt is a link that leads nowhere",
    ),
    "compressed in another way": (
        "text:x.txt.xz",
        lambda d: (d / "x.txt.xz").write_bytes(lzma.compress(b"a")),
        r"x\.txt\.xz is compressed with xz: decompress it, or use one of gzip, zstd, bz2",
    ),
    "compressed and cut short": (
        "jsonl:x.jsonl.gz",
        lambda d: (d / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 9)[:-9]),
        r"x\.jsonl\.gz cannot be decompressed with gzip: Truncated",
    ),
    "compressed and not UTF-8": (
        "text:x.txt.gz",
        lambda d: (d / "x.txt.gz").write_bytes(gzip.compress(b"ab\xff")),
        r"x\.txt\.gz is not UTF-8: byte 0xff at byte offset 2",
    ),
    "kind": ("txt:*.txt", lambda d: None, r"'txt:\*\.txt' is no source; did you mean 'text:GLOB'"),
    "bare kind": ("jsonl", lambda d: None, r"'jsonl' is no source; did you mean 'jsonl:GLOB'"),
    "misspelt": ("shakespear", lambda d: None, r"did you mean 'shakespeare'"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_place(case, tmp_path, monkeypatch):
    spec, prepare, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        list(open_source(spec, "text").read())


def test_the_packaged_corpus_is_what_its_record_says():
    works = dict(shakespeare.works())
    assert len(works) == 42
    assert sum(len(text.encode()) for text in works.values()) == 5_057_198
    assert "Is this a dagger which I see before me" in works["macbeth"]
    with shakespeare.CORPUS.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == shakespeare.SHA256
    record = (shakespeare.CORPUS.parent / "SHAKESPEARE.md").read_text()  # pyright: ignore
    assert shakespeare.SHA256 in record
    for name in shakespeare.HELD_OUT:
        (size,) = re.findall(rf"`{name}` .*\| ([\d,]+) \|", record)
        assert int(size.replace(",", "")) == len(works[name])


@pytest.mark.parametrize("holdout", [0.0, 0.05])
def test_shakespeare_is_split_by_works(holdout):
    train, held_out = split_sources(("shakespeare",), (), holdout, "text")
    trained = {name for name, _ in train[0].documents()}
    tested = {name for name, _ in held_out[0].documents()}
    assert tested == set(shakespeare.HELD_OUT)
    assert not trained & tested
    assert len(trained | tested) == 42


def test_other_documents_are_held_out_by_their_content(tmp_path):
    texts = [f"document number {i}" for i in range(1000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[::-2]))
    sides = {}
    for name in "ab":
        train, held_out = split_sources((f"jsonl:{tmp_path}/{name}.jsonl",), (), 0.1, "text")
        sides[name] = [{text for _, text in side[0].documents()} for side in (train, held_out)]
    assert sides["a"][0] | sides["a"][1] == set(texts)
    assert not sides["a"][0] & sides["a"][1]
    assert 70 < len(sides["a"][1]) < 130
    assert sides["b"][1] == sides["a"][1] & set(texts[::-2])
    assert sides["a"][1] == {text for text in texts if document_fraction(text) < 0.1}


def test_eval_sources_leave_training_whole(tmp_path):
    write_files(tmp_path)
    eval_sources = (f"text:{tmp_path}/2.txt", "shakespeare")
    train, held_out = split_sources((f"text:{tmp_path}/[01].txt",), eval_sources, 0.5, "text")
    assert [text for _, text in train[0].documents()] == TEXTS[:2]
    assert [text for _, text in held_out[0].documents()] == TEXTS[2:]
    assert [name for name, _ in held_out[1].documents()] == list(shakespeare.HELD_OUT)
    with pytest.raises(DataError, match=r"1\.txt of .* has the same bytes as .* which is trained on"):
        split_sources((f"text:{tmp_path}/[01].txt",), (f"text:{tmp_path}/[12].txt",), 0.5, "text")
    assert split_sources((f"text:{tmp_path}/*.txt",), (), 0.0, "text")[1] == []
    assert file_digest(tmp_path / "0.txt") == hashlib.sha256(TEXTS[0].encode()).hexdigest()
