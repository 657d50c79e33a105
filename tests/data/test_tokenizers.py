"""Tokenizers: round trips, byte counts, and saving for a run folder."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bigjax.data import DataError, load_tokenizer, save_tokenizer
from bigjax.data.sources import shakespeare
from bigjax.data.sources.opening import split_sources
from bigjax.data.tokens.bpe import build_tokenizer, train_bpe
from bigjax.data.tokens.tokenizers import ByteTokenizer

TEXTS = [
    "To be, or not to be: that is the question.\n",
    "naïve café — 世界 🎉\u200b\x00\t\r\n   spaces  ",
    "literal <|endoftext|> and </s> <0x41> ▁",
    "",
    "a",
]
SENTENCEPIECE_TEXTS = [text.strip() for text in TEXTS if "▁" not in text and text]


@pytest.fixture(scope="module")
def plays():
    return [text[:60_000] for _, text in itertools.islice(shakespeare.works(), 3)]


@pytest.fixture(scope="module")
def bpe_folder(plays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(plays, 600, folder)
    return folder


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request, bpe_folder):
    return ByteTokenizer() if request.param == "bytes" else load_tokenizer(bpe_folder)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_and_exact_byte_counts(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.eos_id not in ids.tolist()


def test_a_batch_is_its_texts_one_by_one(tokenizer, plays):
    for ids, text in zip(tokenizer.encode_batch(TEXTS + plays), TEXTS + plays, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)


def test_saved_and_loaded_again(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "run")
    again = load_tokenizer(tmp_path / "run")
    assert (again.digest, again.eos_id, again.vocab_size) == (tokenizer.digest, tokenizer.eos_id, tokenizer.vocab_size)
    np.testing.assert_array_equal(again.token_bytes, tokenizer.token_bytes)
    np.testing.assert_array_equal(again.encode(TEXTS[1]), tokenizer.encode(TEXTS[1]))


def test_bytes_are_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é!").tolist() == [0xC3, 0xA9, 0x21]
    assert tokenizer.decode([0xC3, 0x21, 300]) == "\ufffd!\ufffd"


def test_bpe_training_is_deterministic_and_compresses(plays, bpe_folder, tmp_path):
    train_bpe(plays, 600, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (bpe_folder / "tokenizer.json").read_bytes()
    tokenizer = load_tokenizer(bpe_folder)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (600, 0)
    assert tokenizer.token_bytes[0] == 0
    assert len(tokenizer.encode(plays[0])) < 0.6 * len(plays[0])


def test_bpe_is_trained_on_training_documents_and_cached(tmp_path):
    (tmp_path / "train.txt").write_text("aaaa bbbb aaaa bbbb " * 20)
    (tmp_path / "test.txt").write_text("xyxyxyxy " * 100)
    train, _ = split_sources((f"text:{tmp_path}/train.txt",), (f"text:{tmp_path}/test.txt",), 0.0, "text")
    tokenizer = build_tokenizer("bpe:261", train, tmp_path / "cache")
    assert len(tokenizer.encode("xyxy")) == 4
    assert len(tokenizer.encode("aaaa bbbb")) < 9
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("tokenizer.json")}
    assert len(files) == 1
    assert build_tokenizer("bpe:261", train, tmp_path / "cache").digest == tokenizer.digest
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("tokenizer.json")} == files


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_sentencepiece_style_byte_counts(plays, byte_fallback, tmp_path):
    """As Llama's and Gemma's files are written: a space is U+2581, and rare characters are bytes `<0xNN>`."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=byte_fallback, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    alphabet = [] if byte_fallback else sorted(set("".join(SENTENCEPIECE_TEXTS)))
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "</s>", *fallback], initial_alphabet=alphabet, show_progress=False
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.train_from_iterator(plays, trainer)
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = definition["added_tokens"][:2]  # byte tokens are ordinary ones
    definition["pre_tokenizer"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition))
    tokenizer = build_tokenizer(f"hf:{path}", [], tmp_path)
    assert tokenizer.eos_id == 1
    assert tokenizer.token_bytes[:3].tolist() == [0, 0, 1]
    for text in SENTENCEPIECE_TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_the_config_beside_a_file_names_the_end_of_text(bpe_folder, tmp_path):
    definition = json.loads((bpe_folder / "tokenizer.json").read_text())
    definition["added_tokens"].append({**definition["added_tokens"][0], "id": 600, "content": "<done>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert load_tokenizer(tmp_path).eos_id == 0
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<done>"}}')
    assert load_tokenizer(tmp_path).eos_id == 600
    save_tokenizer(load_tokenizer(tmp_path), tmp_path / "run")
    assert load_tokenizer(tmp_path / "run").eos_id == 600
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<missing>"}')
    with pytest.raises(DataError, match=r"eos_token '<missing>'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("byte", "did you mean 'bytes'"),
        ("bpe:many", "'bpe:many' is no tokenizer"),
        ("bpe", "'bpe' is no tokenizer; did you mean 'bpe:SIZE'"),
        ("bpe:256", "too small"),
        ("hf:", "'hf:' is no tokenizer"),
        ("hf:nowhere/tokenizer.json", "no tokenizer at nowhere"),
        ("hf:.", r"the folder \. has no tokenizer\.json"),
        ("bpe:5001", "would have more ids than model.vocab_size=5000"),
        ("bpe:99999999999999999999", "would have more ids than model.vocab_size=5000"),
        ("bpe:4000", r"needs more text: the training documents give \d+ tokens"),
    ],
)
def test_errors_name_what_to_change(spec, message, tmp_path):
    (tmp_path / "little.txt").write_text("very little text")
    train, _ = split_sources((f"text:{tmp_path}/little.txt",), (), 0.0, "text")
    with pytest.raises(DataError, match=message):
        build_tokenizer(spec, train, tmp_path / "cache", 5000)
    assert not [path for path in tmp_path.glob("cache/*/*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{oops", "is not JSON"),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        ('{"a": 1}', "is not a tokenizer.json that can be read"),
        (tokenizers.Tokenizer(models.BPE()).to_str(), "has no tokens"),
    ],
    ids=("no JSON", "brackets", "another", "empty"),
)
def test_a_broken_file_is_an_error(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_word_piece_tells_where_words_start_but_not_how_many_bytes(tmp_path):
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.token_bytes is None
    assert loaded.word_starts.tolist() == [True, True, False]
    assert loaded.encode("ab").tolist() == [1, 2]


def test_a_vocabulary_of_an_unknown_kind_is_an_error(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="byte-level, SentencePiece-style or WordPiece"):
        load_tokenizer(tmp_path)
