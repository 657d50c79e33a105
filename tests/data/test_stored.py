"""Stored tokens: shards of other tools, read as what they are and cut as the tokens of a text would be."""

import itertools
import struct
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigjax import config, data
from bigjax.config import Config, strict
from bigjax.data import DataError
from bigjax.data.rows.packing import pack_rows
from bigjax.data.stored import manifest, megatron
from bigjax.data.stored.corpus import open_corpus
from bigjax.data.stored.reading import Reader
from bigjax.paths import RemotePath, as_path

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(1, 250, RNG.integers(1, 60)) for _ in range(120)]
TOKENS = np.concatenate(DOCUMENTS)
OFFSETS = np.concatenate([[0], np.cumsum([len(document) for document in DOCUMENTS])])


def run_of(folder, pattern="*.bin", vocab=256, objective="causal_lm", **fields) -> Config:
    fields = {"sources": [f"tokens:{folder}/{pattern}"], "holdout": 0.0, "seq_len": 16, **fields}
    model = {"vocab_size": vocab, "d_model": 16, "num_heads": 2}
    mapping = {"model": model, "data": {"cache_dir": "cache", **fields}}
    return strict.from_dict(Config, mapping | {"train": {"global_batch_size": 8, "objective": objective}})


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def write_megatron(path, documents, code=8, dtype="<u2", parts=1):
    """Write the format as its documentation says it, each document in some sequences."""
    sequences = [part for document in documents for part in np.array_split(document, min(parts, len(document)))]
    counts = [min(parts, len(document)) for document in documents]
    lengths = [len(sequence) for sequence in sequences]
    pointers = [sum(lengths[:i]) * np.dtype(dtype).itemsize for i in range(len(lengths))]
    ends = [sum(counts[:i]) for i in range(len(counts) + 1)]
    path.with_suffix(".bin").write_bytes(b"".join(np.asarray(sequence, dtype).tobytes() for sequence in sequences))
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(ends))
    index += struct.pack(f"<{len(lengths)}i{len(pointers)}q{len(ends)}q", *lengths, *pointers, *ends)
    path.with_suffix(".idx").write_bytes(index)


def read_megatron(path):
    """Read the format as its documentation says it; return the documents."""
    index, content = path.with_suffix(".idx").read_bytes(), path.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\0\0"
    version, code, sequences, documents = struct.unpack_from("<QBQQ", index, 9)
    dtype = {4: "<i4", 8: "<u2"}[code]
    assert version == 1
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    ends = struct.unpack_from(f"<{documents}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * documents
    parts = [np.frombuffer(content, dtype, length, at) for at, length in zip(pointers, lengths, strict=True)]
    return [np.concatenate(parts[a:b]) for a, b in itertools.pairwise(ends)]


def assert_rows(text, tokens, offsets, document_mask=True):
    """Every row is that of a text of these tokens."""
    (rows,) = text.train.sources
    numbers = np.arange(len(rows) + 1)
    expected = pack_rows(tokens, offsets, numbers, 16, document_mask)
    found = rows.arrays(numbers, numbers)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8"), (1, "u1")])
@pytest.mark.parametrize("parts", [1, 3])
def test_megatron_shards_are_one_text(tmp_path, code, dtype, parts):
    for number, part in enumerate(np.array_split(np.arange(len(DOCUMENTS)), 4)):
        write_megatron(tmp_path / f"{number}.bin", [DOCUMENTS[i] for i in part], code, dtype, parts)
    text = data.build(run_of(tmp_path), slice(0, 8))
    assert text.train.sources[0].sizes == {"documents": 120, "tokens": len(TOKENS), "bytes": 0}
    assert_rows(text, TOKENS, OFFSETS)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_what_is_written_for_megatron_is_what_its_documentation_says(tmp_path, dtype):
    megatron.write(tmp_path / "a.bin", DOCUMENTS, np.dtype(dtype))
    found = read_megatron(tmp_path / "a.bin")
    assert len(found) == len(DOCUMENTS)
    for ids, document in zip(found, DOCUMENTS, strict=True):
        np.testing.assert_array_equal(ids, document)
        assert ids.dtype == dtype


class Ended:
    """A tokenizer whose id 7 ends a text."""

    vocab_size, eos_id, bos_id, opening, special, token_bytes, digest = 256, 7, None, (), {}, None, "ended"


@pytest.mark.parametrize("kind", ["llm.c", "llm.c 32", "raw"])
def test_shards_without_an_index_part_documents_by_the_end_of_text(tmp_path, kind):
    ids = np.concatenate(
        [[7, *(document % 200 + 8)] if "llm" in kind else [*(document % 200 + 8), 7] for document in DOCUMENTS]
    )
    dtype = "<u4" if "32" in kind else "<u2"
    for number, part in enumerate(np.array_split(ids, 3)):
        header = np.zeros(256, "<i4")
        header[:3] = (20240801, 7, len(part)) if "32" in kind else (20240520, 1, len(part))
        content = part.astype(dtype).tobytes()
        (tmp_path / f"{number}.bin").write_bytes(content if kind == "raw" else header.tobytes() + content)
    text = data.build(run_of(tmp_path), slice(0, 8), Ended())
    starts = np.flatnonzero(ids == 7) + (0 if "llm" in kind else 1)
    assert_rows(text, ids, np.unique([0, *starts, len(ids)]))
    claims = {"llm.c": ("gpt-2",), "llm.c 32": ("llama-3",), "raw": ()}[kind]
    assert text.train.sources[0].corpus.claims == claims
    assert tuple(text.describe()["train"][0].get("claims", ())) == claims


def write_table(path, documents, column="input_ids", **metadata):
    table = pa.table({column: [document.tolist() for document in documents]})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=17)


def write_records(path, documents, column="input_ids"):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for document in documents:
        example = proto.Example()
        example.features.feature[column].int64_list.value.extend(document.tolist())
        writer.write(example.SerializeToString())
    writer.close()


@pytest.mark.parametrize(("write", "suffix"), [(write_table, "parquet"), (write_records, "array_record")])
def test_tables_of_ids_are_kept_as_shards(tmp_path, write, suffix):
    write(tmp_path / f"a.{suffix}", DOCUMENTS[:50])
    write(tmp_path / f"b.{suffix}", DOCUMENTS[50:])
    cfg = run_of(tmp_path, f"*.{suffix}")
    assert_rows(data.build(cfg, slice(0, 8)), TOKENS, OFFSETS)
    kept = list((tmp_path / "cache/converted").glob("*/manifest*")) + list(
        (tmp_path / "cache/converted").glob("*/*.bin")
    )
    times = {path: path.stat().st_mtime_ns for path in kept}
    data.build(cfg, slice(0, 8))
    assert times and {path: path.stat().st_mtime_ns for path in kept} == times


def test_wide_ids_take_32_bits(tmp_path):
    write_table(tmp_path / "a.parquet", [np.array([1, 70_000]), *DOCUMENTS], tokenizer="mine")
    corpus = open_corpus(f"{tmp_path}/cache/converted/*/*.bin", tmp_path) if (tmp_path / "cache").exists() else None
    assert corpus is None
    with pytest.raises(
        DataError, match=r"has the id 70000 in 000000\.bin, but data\.tokenizer='bytes' has only 256 ids"
    ):
        data.build(run_of(tmp_path, "*.parquet"), slice(0, 8))
    corpus = open_corpus(f"{tmp_path}/cache/converted/*/*.bin", tmp_path)
    assert corpus.dtype == np.int32 and corpus.read(0, 2).tolist() == [1, 70_000] and corpus.claims == ("mine",)


def test_what_is_held_out_is_the_end_from_a_documents_start(tmp_path):
    megatron.write(tmp_path / "a.bin", DOCUMENTS, np.dtype(np.uint16))
    text = data.build(run_of(tmp_path, holdout=0.2), slice(0, 8))
    train, held_out = text.train.sources[0], text.eval.sources[0]
    assert (train.first, train.last, held_out.last) == (0, held_out.first, len(TOKENS))
    assert held_out.first in OFFSETS
    assert abs(len(TOKENS) - held_out.first - 0.2 * len(TOKENS)) <= 60
    assert train.sizes["documents"] + held_out.sizes["documents"] == 120
    (batch, *_) = text.eval.batches()
    assert (batch.arrays["bytes"] == batch.arrays["weights"]).all()  # every id is a byte


def test_a_contiguous_order_says_what_continues(tmp_path):
    megatron.write(tmp_path / "a.bin", DOCUMENTS, np.dtype(np.uint16))
    cfg = run_of(tmp_path)
    rows = data.build(cfg, slice(0, 8)).train.sources[0]
    import dataclasses

    found = dataclasses.replace(rows, contiguous=True).arrays(np.arange(len(rows)), np.arange(len(rows)))["continues"]
    np.testing.assert_array_equal(found, ~np.isin(np.arange(len(rows)) * 16, OFFSETS))


def test_a_store_of_objects_gives_the_same_rows(tmp_path):
    folder = as_path("memory://shards")
    for number, part in enumerate((DOCUMENTS[:50], DOCUMENTS[50:])):
        megatron.write(tmp_path / f"{number}.bin", part, np.dtype(np.uint16))
        for suffix in ("bin", "idx"):
            (folder / f"{number}.{suffix}").write_bytes((tmp_path / f"{number}.{suffix}").read_bytes())
    text = data.build(run_of("memory://shards"), slice(0, 8))
    assert_rows(text, TOKENS, OFFSETS)
    assert text.train.sources[0].digest == data.build(run_of(tmp_path), slice(0, 8)).train.sources[0].digest
    assert (folder / manifest.NAME).is_file()


def test_a_mixture_of_text_and_tokens(tmp_path):
    megatron.write(tmp_path / "a.bin", DOCUMENTS, np.dtype(np.uint16))
    (tmp_path / "a.txt").write_text("some text that is not long. " * 100)
    cfg = config.replace(run_of(tmp_path), data={"sources": (f"tokens:{tmp_path}/*.bin", f"text:{tmp_path}/a.txt")})
    text = data.build(cfg, slice(0, 8))
    source, _, _ = text.train.order.locate(text.train.ids(0, range(8)))
    assert set(text.train.batch(0).arrays) == {"tokens", "targets", "weights", "segments", "positions"}
    assert len(set(source.tolist())) == 2


def test_other_tasks_say_that_they_read_texts(tmp_path):
    megatron.write(tmp_path / "a.bin", DOCUMENTS, np.dtype(np.uint16))
    mapping = {"model": {"vocab_size": 300, "d_model": 16, "num_heads": 2, "family": "encoder"}}
    mapping |= {"data": {"sources": [f"tokens:{tmp_path}/*.bin"], "cache_dir": "cache", "seq_len": 16}}
    cfg = strict.from_dict(Config, mapping | {"train": {"global_batch_size": 8, "objective": "masked_lm"}})
    with pytest.raises(DataError, match=r"holds tokens, not texts: set train\.objective='causal_lm'"):
        data.build(cfg, slice(0, 8))


class Slow(RemotePath):
    """An object whose blocks arrive when `gate` opens; `asked` has what was asked for."""

    gate, asked = threading.Event(), []

    def read_bytes(self, start=None, end=None):
        self.asked.append((start, end))
        assert self.gate.wait(30)
        return super().read_bytes(start, end)


def test_blocks_of_objects_are_fetched_together_and_kept_under_a_bound(tmp_path):
    content = bytes(range(250)) * 4
    path = Slow("memory://blocks/a.bin")
    path.write_bytes(content)
    reader = Reader(tmp_path, block=64, kept=640)
    reader.ahead([(path, 1000, 0, 500), (path, 1000, 990, 10)])
    for _ in range(1000):  # all are asked for before one has come
        if len(path.asked) == 9:
            break
        threading.Event().wait(0.01)
    assert sorted(path.asked) == [(64 * i, 64 * i + 64) for i in range(8)] + [(960, 1000)]
    path.gate.set()
    assert reader.read(path, 1000, 3, 490) == content[3:493] and len(path.asked) == 9
    assert reader.read(path, 1000, 640, 360) == content[640:] and len(path.asked) == 15
    assert reader.read(path, 1000, 0, 64) == content[:64] and len(path.asked) == 16  # it had made room
    assert reader.read(path, 1000, 900, 200) == content[900:]


@pytest.mark.exhaustive
def test_a_bucket_gives_the_same_rows(bucket, tmp_path):
    """On a real server: listed once, blocks fetched once each, and nothing read again by the next start."""
    for number, part in enumerate((DOCUMENTS[:50], DOCUMENTS[50:])):
        megatron.write(tmp_path / f"{number}.bin", part, np.dtype(np.uint16))
        for suffix in ("bin", "idx"):
            (bucket / f"tokens/{number}.{suffix}").write_bytes((tmp_path / f"{number}.{suffix}").read_bytes())
    first = data.build(run_of(f"{bucket}/tokens"), slice(0, 8))
    assert_rows(first, TOKENS, OFFSETS)
    assert (bucket / "tokens" / manifest.NAME).is_file()
    again = data.build(run_of(f"{bucket}/tokens"), slice(0, 8))
    assert again.train.sources[0].digest == first.train.sources[0].digest
    (bucket / "tokens/1.bin").write_bytes(bytes(10))
    with pytest.raises(DataError, match=r"/tokens/1\.bin has changed since its manifest was written: its size was"):
        data.build(run_of(f"{bucket}/tokens"), slice(0, 8))
