"""What a path on the disk does, one in an object store does, too; and what one alone can make, one alone does."""

import random
import threading
from importlib.util import find_spec

import pytest

from bigjax import paths
from bigjax.data import DataError
from bigjax.data.sources.readers import find_files
from bigjax.data.tokens.bpe import train_bpe
from bigjax.data.tokens.tokenizers import load_file, load_tokenizer, save_tokenizer
from bigjax.errors import UserError
from bigjax.paths import RemotePath, as_path, retries
from tests import object_store

FILES = {"a/one.txt": b"1\n", "a/two.txt": b"22", "a/b/three.bin": bytes(range(256)) * 40, "four.tar.gz": b""}


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    """A folder with some files, of either kind."""
    place = tmp_path / "x" if request.param == "disk" else request.getfixturevalue("bucket") / "x"
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        paths.write_whole(place / name, data)
    return place


def test_the_names_of_pathlib_mean_the_same(folder):
    def names(found):
        return sorted(path.relative_to(folder).as_posix() for path in found)

    assert names(folder.iterdir()) == ["a", "four.tar.gz"]
    assert names(folder.glob("*/*.txt")) == ["a/one.txt", "a/two.txt"]
    assert names(path for path in folder.rglob("*") if path.is_file()) == sorted(FILES)
    assert names(paths.matching(f"{folder}/a/*")) == ["a/b", "a/one.txt", "a/two.txt"]
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    big = folder / "a/b/three.bin"
    assert (big.is_file(), big.is_dir(), big.exists(), big.parent.is_dir(), big.parent.is_file()) == (1, 0, 1, 1, 0)
    assert (big.name, big.stem, big.suffix, big.parent.name) == ("three.bin", "three", ".bin", "b")
    assert (folder / "four.tar.gz").suffixes == [".tar", ".gz"]
    assert big.with_suffix(".txt").name == "three.txt"
    assert big.with_name("x") == folder / "a" / "b" / "x"
    assert big.stat().st_size == len(FILES["a/b/three.bin"])
    with big.open("rb") as file:
        file.seek(-3, 2)
        assert file.read() == bytes([253, 254, 255])
    with (folder / "a/one.txt").open() as file:
        assert list(file) == ["1\n"]
    with (folder / "new").open("w", encoding="utf-8") as file:
        file.write("ü")
    assert (folder / "new").read_text(encoding="utf-8") == "ü"
    (folder / "new").unlink()
    (folder / "gone").unlink(missing_ok=True)
    for missing in (lambda: (folder / "new").read_bytes(), lambda: list((folder / "no").iterdir())):
        with pytest.raises(FileNotFoundError) as caught:
            missing()
        assert caught.value.strerror == "No such file or directory"
    paths.remove_tree(folder)
    assert not folder.exists()


def test_one_alone_makes_a_file(folder):
    made, start = [], threading.Barrier(8)

    def make(number):
        start.wait()
        made.append(paths.create(folder / "claim", b"%d" % number))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def test_a_remote_path_is_no_path_on_the_disk(bucket):
    with pytest.raises(TypeError):
        open(bucket / "x")  # noqa: PTH123, SIM115
    assert isinstance(as_path("runs/a"), type(as_path("file:///runs/a")))
    assert not paths.is_remote("hf:a/b") and not paths.is_remote("text:corpus/*.txt") and paths.is_remote("gs://a/b")
    assert str(as_path("s3://b/a//c/./d/../e/")) == "s3://b/a/c/e"
    with pytest.raises(ValueError, match="mode 'a'"):
        (bucket / "x").open("a")


def test_copies_are_fetched_once_and_keep_their_names(bucket, tmp_path):
    for name in ("t/a.txt", "t/b/c.txt"):
        (bucket / name).write_text(name)
    found = paths.fetched(paths.matching(f"{bucket}/t/**/*.txt"), tmp_path)
    assert [path.read_text() for path in found] == ["t/a.txt", "t/b/c.txt"]
    assert found[0].parent / "b" / "c.txt" == found[1]
    assert paths.fetched([bucket / "t/a.txt", bucket / "t/b/c.txt"], tmp_path) == found
    (bucket / "t/a.txt").write_text("longer than before")
    assert paths.fetched([bucket / "t/a.txt", bucket / "t/b/c.txt"], tmp_path)[0].read_text() == "longer than before"
    assert (paths.fetched_folder(bucket / "t", "*.txt", root=tmp_path) / "a.txt").is_file()
    with paths.on_disk(bucket / "made") as place:
        place.mkdir()
        (place / "x").write_text("y")
    assert (bucket / "made" / "x").read_text() == "y"


FAULTS = {"throttled": "503", "dropped": "drop", "cut short": "truncate", "late": "delay"}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_store_that_fails_is_asked_again_and_said_once(store, kind, capsys, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    fault = FAULTS[kind]
    with object_store.proxy(store) as port, object_store.used(store, port):
        bucket = store.bucket()
        luck = random.Random(0)
        store.fault = lambda *_: fault if luck.random() < 0.4 else None
        for number in range(3):
            (bucket / f"{number}").write_bytes(b"%d" % number * 1000)
            assert (bucket / f"{number}").read_bytes() == b"%d" % number * 1000
        assert (bucket / "lock").create(b"mine")
        assert not (bucket / "lock").create(b"another's")
        assert len(list(bucket.iterdir())) == 4
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) <= 1 and (kind != "throttled" or warnings)  # a dropped connection the client may mend itself
    assert all("did not answer" in line for line in warnings)


def test_a_file_that_was_made_though_the_answer_was_lost_is_ones_own(store, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    with object_store.proxy(store) as port, object_store.used(store, port):
        bucket = store.bucket()
        store.fault = lambda number, method, path: "lose" if number == 1 else None
        store.requests.clear()
        assert (bucket / "lock").create(b"mine")
        assert [method for _, method, _, _ in store.requests].count("PUT") == 2
        assert not (bucket / "lock").create(b"another's")


def test_what_will_not_mend_itself_is_one_sentence(store, bucket, monkeypatch):
    with pytest.raises(paths.StoreError, match=r"^s3://none-such/a cannot be read: there is no bucket 'none-such'"):
        as_path("s3://none-such/a").exists()
    with object_store.proxy(store) as port, object_store.used(store, port):
        store.fault = lambda *_: "403"
        with pytest.raises(UserError, match=r"refuses these credentials .* set AWS_ACCESS_KEY_ID"):
            (bucket / "a").write_bytes(b"")
    monkeypatch.setattr(retries, "FIRST_PATIENCE_S", 0.3)
    with object_store.used(store, 9), pytest.raises(UserError, match=r"has not answered for .* AWS_ENDPOINT_URL"):
        (bucket / "a").exists()
    with pytest.raises(UserError, match=r"^foo:// is no store that fsspec knows"):
        RemotePath("foo://a/b").exists()
    if find_spec("gcsfs") is None:
        with pytest.raises(
            UserError, match=r"^gs:// needs gcsfs, which is not installed: pip install 'bigjax\[cloud\]'"
        ):
            RemotePath("gs://a/b").exists()


def test_sources_and_tokenizers_lie_in_a_store(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("b.txt", "a.txt", "empty.txt"):
        (bucket / "corpus" / name).write_text("" if name == "empty.txt" else name)
    found = find_files(f"{bucket}/corpus/*.txt")
    assert [path.read_text() for path in found.files] == ["a.txt", "b.txt"]
    assert found.notes == (f"{bucket}/corpus/empty.txt is empty",)
    with pytest.raises(DataError, match=r"no file matches .*: name the files in it"):
        find_files(f"{bucket}/corpus")
    (tmp_path / "bpe").mkdir()
    train_bpe(iter(["some text, some more text"] * 9), 260, tmp_path / "bpe")
    for file in (tmp_path / "bpe").iterdir():
        (bucket / "tokens" / file.name).write_bytes(file.read_bytes())
    here = load_tokenizer(tmp_path / "bpe")
    for place in (f"{bucket}/tokens", f"{bucket}/tokens/tokenizer.json"):
        assert load_file(place).digest == here.digest
    save_tokenizer(here, bucket / "again")
    assert load_tokenizer(bucket / "again").digest == here.digest
