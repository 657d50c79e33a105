"""Manifests: no start reads a shard twice, and what is not as it was is named."""

import os
import time

import numpy as np
import pytest

from bigjax import data
from bigjax.data import DataError
from bigjax.data.stored import manifest, megatron
from bigjax.data.stored.corpus import open_corpus
from bigjax.run import identity
from tests.data.test_stored import DOCUMENTS, TOKENS, run_of, write_megatron, write_table

UINT16 = np.dtype(np.uint16)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def shards(tmp_path):
    """Three shards that a first start has read."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        megatron.write(folder / f"{number}.bin", DOCUMENTS[number::3], UINT16)
    data.build(run_of(folder), slice(0, 8))
    return folder


def later(path):
    """Give a file another time."""
    os.utime(path, ns=(time.time_ns() + 10**9,) * 2)


def test_a_second_start_reads_no_shard(shards, monkeypatch):
    first = identity.fingerprint(run_of(shards))
    monkeypatch.setattr(manifest, "read_shard", lambda *_: pytest.fail("a shard was read"))
    cfg = run_of(shards)
    assert identity.fingerprint(cfg) == first
    data.build(cfg, slice(0, 8)).train.batch(0)


def test_shards_of_any_size_start_as_soon(tmp_path):
    """Shards of ids 0 of which the disk holds nothing: 10^11 ids in 100 shards."""
    for number in range(100):
        with (tmp_path / f"{number:03}.bin").open("wb") as file:
            file.truncate(2 * 10**6)
    names = np.array([f"{number:03}.bin".encode() for number in range(100)])
    rows = manifest.rows_of(tmp_path, names, tmp_path)
    for number in range(100):
        with (tmp_path / f"{number:03}.bin").open("r+b") as file:
            file.truncate(2 * 10**9)
    from bigjax.data.stored import places

    for column, values in zip(manifest.STAMP, places.stamps(tmp_path, names).T, strict=True):
        rows[column] = values
    rows["tokens"] = 10**9
    manifest.write(tmp_path / manifest.NAME, names, rows)
    text = data.build(run_of(tmp_path, seq_len=1024), slice(0, 8))
    assert text.train.sources[0].sizes["tokens"] == 10**11
    batch = text.train.batch(10**6)
    assert batch.arrays["tokens"].shape == (8, 1024) and batch.arrays["weights"].all()


def test_the_same_bytes_at_another_time_or_place_are_the_same(shards, tmp_path):
    first = open_corpus(f"{shards}/*.bin", tmp_path)
    later(shards / "1.bin")
    assert open_corpus(f"{shards}/*.bin", tmp_path).digest == first.digest
    fingerprint = identity.fingerprint(run_of(shards))
    shards.rename(tmp_path / "moved")
    assert open_corpus(f"{tmp_path}/moved/*.bin", tmp_path).digest == first.digest
    assert identity.fingerprint(run_of(tmp_path / "moved")) == fingerprint
    (tmp_path / "moved" / manifest.NAME).unlink()
    assert open_corpus(f"{tmp_path}/moved/*.bin", tmp_path).digest == first.digest


def flip(path):
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)
    later(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def replace(path):
    megatron.write(path, DOCUMENTS[:5], UINT16)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        (flip, "1.bin", "its sha256 was .* and is"),
        (flip, "1.idx", r"1\.bin has changed|1\.idx disagrees with itself|1\.idx is no Megatron index"),
        (cut, "1.bin", "its size was .* and is"),
        (cut, "1.idx", "its index size was .* and is"),
        (replace, "1.bin", "its size was .* and is"),
        (os.unlink, "1.bin", None),
        (os.unlink, "1.idx", "its index size was .* and is -1"),
    ],
)
def test_what_has_changed_is_named(shards, change, name, said):
    change(shards / name)
    if said is None:  # two shards are another corpus
        assert len(open_corpus(f"{shards}/*.bin", shards)) < len(TOKENS)
        return
    with pytest.raises(DataError, match=said) as found:
        data.build(run_of(shards), slice(0, 8))
    assert f"{shards}/1" in str(found.value)


def test_every_byte_is_verified_on_demand(shards, tmp_path):
    names = np.array([b"0.bin", b"1.bin", b"2.bin"])
    assert manifest.verify(shards, names, tmp_path) == []
    before = (shards / "1.bin").stat()
    content = bytearray((shards / "1.bin").read_bytes())
    content[-1] ^= 1
    (shards / "1.bin").write_bytes(content)
    os.utime(shards / "1.bin", ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk does that rots
    open_corpus(f"{shards}/*.bin", tmp_path)
    (problem,) = manifest.verify(shards, names, tmp_path)
    assert f"{shards}/1.bin has changed: its sha256 was" in problem


def test_a_damaged_manifest_is_never_read(shards, tmp_path):
    place = shards / manifest.NAME
    for content in (b"", place.read_bytes()[:-1], b"\x80\x04" + place.read_bytes()[2:]):
        place.write_bytes(content)
        with pytest.raises(DataError, match=r"the manifest .* is damaged .*: delete it"):
            open_corpus(f"{shards}/*.bin", tmp_path)


def test_where_nothing_can_be_written_the_manifest_lies_in_the_cache(shards, tmp_path, monkeypatch):
    (shards / manifest.NAME).unlink()
    write, refused = manifest.write, []

    def only_elsewhere(path, names, rows):
        if path.parent == shards:
            refused.append(path)
            raise PermissionError(13, "Permission denied")
        write(path, names, rows)

    monkeypatch.setattr(manifest, "write", only_elsewhere)
    first = open_corpus(f"{shards}/*.bin", tmp_path / "cache")
    assert refused and not (shards / manifest.NAME).exists()
    monkeypatch.setattr(manifest, "read_shard", lambda *_: pytest.fail("a shard was read"))
    assert open_corpus(f"{shards}/*.bin", tmp_path / "cache").digest == first.digest


def test_of_many_shards_none_is_on_both_sides(shards, monkeypatch):
    monkeypatch.setattr("bigjax.data.sources.stored.LISTED", 1)
    rejected(shards, r"/2\.bin of .* has the same bytes as a shard of", eval_sources=(f"tokens:{shards}/2.bin",))


def rejected(folder, match, **fields):
    with pytest.raises(DataError, match=match) as found:
        data.build(run_of(folder, **fields), slice(0, 8))
    assert len(str(found.value)) < 500


def test_bad_shards_are_refused_in_a_sentence(tmp_path):
    def fresh(name):
        folder = tmp_path / name
        folder.mkdir()
        return folder

    folder = fresh("beyond")
    megatron.write(folder / "a.bin", [*DOCUMENTS, np.array([300])], UINT16)
    rejected(folder, r"has the id 300 in a\.bin, but data\.tokenizer='bytes' has only 256 ids")
    folder = fresh("wide")
    TOKENS.astype("<u4").tofile(folder / "a.bin")
    rejected(folder, r"every other one is 0, as in uint32")
    folder = fresh("odd")
    (folder / "a.bin").write_bytes(b"abc")
    rejected(folder, r"3 bytes, which are no whole number of uint16 ids")
    folder = fresh("negative")
    write_megatron(folder / "a.bin", [np.array([5, -3])], 4, "<i4")
    rejected(folder, r"has the id -3: ids are 0 or more")
    folder = fresh("floats")
    write_megatron(folder / "a.bin", DOCUMENTS, 7, "<f4")
    rejected(folder, r"type 7 of ids, which are none")
    folder = fresh("short")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 1000
    (folder / "a.bin").write_bytes(header.tobytes() + bytes(20))
    rejected(folder, r"its header says 1,000 ids of uint16, which take 3,024: it is cut short")
    folder = fresh("kinds")
    megatron.write(folder / "a.bin", DOCUMENTS, UINT16)
    megatron.write(folder / "b.bin", DOCUMENTS, np.dtype(np.int32))
    rejected(folder, r"b\.bin has int32 ids in megatron's layout, but a\.bin has uint16 .* two sources")
    folder = fresh("others")
    megatron.write(folder / "a.bin", DOCUMENTS, UINT16)
    rejected(folder, r"matches .*a\.idx, which is no \.bin", pattern="*")
    rejected(folder, r"no file matches", pattern="*.tok")
    rejected(folder, r"is a folder: name the shards in it", pattern="")
    rejected(folder, r"needs text|holds tokens, not texts", tokenizer="bpe:300", vocab=512)
    rejected(
        folder, r"has the same bytes as a\.bin of .*, which is trained on", eval_sources=(f"tokens:{folder}/a.bin",)
    )
    folder = fresh("tables")
    write_table(folder / "a.parquet", DOCUMENTS, column="ids")
    rejected(folder, r"has no column input_ids of lists of whole numbers, only ids", pattern="*.parquet")
    write_table(folder / "a.parquet", [np.array([1.5])])
    rejected(folder, r"has no column input_ids of lists of whole numbers, only input_ids \(list", pattern="*.parquet")
    write_table(folder / "a.parquet", [np.array([2**33])])
    rejected(folder, r"a\.parquet, row 0: input_ids has the id 8589934592, and ids go from 0 to", pattern="*.parquet")
    (folder / "b.arecord").write_bytes(b"no record" * 100)
    rejected(folder, r"b\.arecord holds no row, or is no arecord file", pattern="*.arecord")
