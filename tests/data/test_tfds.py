"""TensorFlow Datasets: a dataset prepared from local files is read without TensorFlow."""

import re
import shutil
import subprocess
import sys

import pytest

from bigjax.data import DataError
from bigjax.data.sources import tfds_text
from bigjax.data.sources.opening import open_source

TEXTS = {f"{i}.txt": f"document {i}: äöü 世界\n" for i in range(7)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepare a dataset by the documented command; return the folder of datasets."""
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "in").mkdir()
    for name, text in TEXTS.items():
        (folder / "in" / name).write_bytes(text.encode())
    arguments = ["--name=books", f"--files={folder}/in/*.txt", f"--data_dir={folder}/out"]
    command = [sys.executable, "-m", "bigjax.data.sources.tfds_text", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("text_files/books/1.0.0")
    return folder / "out"


@pytest.fixture(params=["text_files/books", "text_files/books:1.0.0:train", "{folder}/text_files/books/1.0.0"])
def spec(request, prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    return "tfds:" + request.param.format(folder=prepared)


def test_prepared_documents_are_read(spec):
    source = open_source(spec, "text")
    assert sorted(text for _, text in source.read()) == sorted(TEXTS.values())
    assert list(source.read()) == list(source.read())
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("text_files/books:test", "text", "has no split 'test', only train"),
        ("text_files/books", "body", r"has no feature data\.text_key='body', only 'name', 'text'"),
        ("imdb_reviews", "text", "tfds:imdb_reviews is not prepared on this machine"),
        ("nothing_like_it:train", "text", "is not prepared on this machine"),
        ("/nowhere/1.0.0", "text", "is not prepared on this machine"),
        ("no such name", "text", "tfds:no such name cannot be opened: Parsing builder name"),
    ],
)
def test_errors_come_at_once_and_by_name(name, key, message, prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    with pytest.raises(DataError, match=message):
        open_source(f"tfds:{name}", key)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("books", "*.txt", r"books/1\.0\.0 is prepared already: delete it, or choose another name"),
        ("none", "*.md", r"no file matches '.*\*\.md'"),
        ("a/b", "*.txt", "--name='a/b' must be of letters, digits and underscores"),
    ],
)
def test_what_cannot_be_prepared_is_one_sentence(name, files, message, prepared, monkeypatch, capsys):
    arguments = [f"--name={name}", f"--files={prepared.parent}/in/{files}", f"--data_dir={prepared}"]
    monkeypatch.setattr(sys, "argv", ["tfds_text", *arguments])
    with pytest.raises(SystemExit) as caught:
        tfds_text.main()
    assert caught.value.code == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", capsys.readouterr().err)
    assert [path.name for path in prepared.glob("text_files/*")] == ["books"]


DAMAGE = {
    "record": ("text_files-train.array_record-00000-of-00001", 100, "tfds:text_files:train cannot be read: Corrupted"),
    "info": ("dataset_info.json", 0, "1.0.0 cannot be opened: Failed to load JSON"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_named(case, prepared, tmp_path):
    file, place, message = DAMAGE[case]
    folder = shutil.copytree(prepared / "text_files/books/1.0.0", tmp_path / "1.0.0")
    content = bytearray((folder / file).read_bytes())
    content[place] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(open_source(f"tfds:{folder}", "text").read())
    assert "\n" not in str(caught.value)
