"""Random data files and tokenizers: refused in a sentence that leaves nothing half made, or read."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from bigjax import data
from bigjax.config import Config, strict
from bigjax.data.tokens.bpe import train_bpe
from tests.fuzzing import attempt, lengths, search, spoil_file, spoiled_bytes

TEXTS = st.text(max_size=40)
WORDS = st.sampled_from(("the quick brown fox ", "jumps over ", "the lazy dog\n", "Zürich 東京 ", "\x00", '"', ","))
PROSE = st.lists(WORDS, min_size=30, max_size=80).map("".join)


@st.composite
def jsonl(draw: st.DrawFn) -> bytes:
    value = st.one_of(TEXTS, PROSE, st.integers(), st.none())
    rows = draw(st.lists(st.dictionaries(st.sampled_from(("text", "label", "target", "")), value), max_size=6))
    return "\n".join(map(json.dumps, rows)).encode()


@st.composite
def table(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from(("text", "label", "target", "text ", "")), min_size=1, max_size=3))
    rows = draw(st.lists(st.lists(st.one_of(TEXTS, PROSE), min_size=1, max_size=3), max_size=5))
    return "\n".join(draw(st.sampled_from((",", "\t"))).join(row) for row in [names, *rows]).encode()


@st.composite
def parquet(draw: st.DrawFn) -> bytes:
    columns = st.sampled_from(("text", "label", "target"))
    kinds = st.sampled_from((pa.string(), pa.large_string(), pa.int32(), pa.binary(), pa.list_(pa.string())))
    fields = draw(st.dictionaries(columns, kinds, min_size=1))
    size = draw(st.integers(0, 4))
    values = {
        pa.int32(): st.integers(0, 5),
        pa.binary(): st.binary(max_size=9),
        pa.list_(pa.string()): st.lists(TEXTS, max_size=2),
    }
    filled = {
        name: pa.array(draw(st.lists(values.get(kind, PROSE) | st.none(), min_size=size, max_size=size)), kind)
        for name, kind in fields.items()
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(filled), sink)
    return sink.getvalue().to_pybytes()


CONTENTS = {"text": PROSE.map(str.encode), "jsonl": jsonl(), "csv": table(), "tsv": table(), "parquet": parquet()}


@st.composite
def corpora(draw: st.DrawFn) -> tuple[str, list[bytes], dict]:
    """Return a kind of source, the content of its files, and changes to the config."""
    kind = draw(st.sampled_from(sorted(CONTENTS)))
    files = [draw(CONTENTS[kind]) for _ in range(draw(st.integers(1, 2)))]
    if draw(st.integers(0, 2)) == 0:
        files[0] = draw(st.one_of(spoiled_bytes(files[0]), st.binary(max_size=60)))
    objective = draw(st.sampled_from(("causal_lm", "causal_lm", "masked_lm", "classification", "seq2seq")))
    model = {"vocab_size": 1024, "d_model": 16, "num_heads": 2}
    fields = {"seq_len": 8, "holdout": draw(st.sampled_from((0.0, 0.0, 0.3)))}
    if objective == "seq2seq":
        model |= {"family": "encdec", "positions": "sinusoidal"}
        fields["target_len"] = 8
    elif objective != "causal_lm":
        model["family"] = "encoder"
        model |= {"head": "classification", "num_classes": 2} if objective == "classification" else {}
    fields["tokenizer"] = draw(st.sampled_from(("bytes", "bytes", "bpe:260")))
    train = {"objective": objective, "global_batch_size": 2}
    return kind, files, {"model": model, "data": fields, "train": train}


@lengths(100, 800)
def test_data_files(count, record_property):
    def case(corpus):
        kind, files, mapping = corpus
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for number, content in enumerate(files):
                (folder / f"{number}.dat").write_bytes(content)
            where = {"sources": [f"{kind}:{folder}/*.dat"], "cache_dir": f"{folder}/cache"}
            mapping["data"] |= where
            with attempt():
                cfg = strict.from_dict(Config, mapping)
                text = data.build(cfg, slice(0, 2))
                first, later = text.train.batch(0), text.train.batch(7)
                assert first.arrays.keys() == later.arrays.keys()
                assert all(np.isfinite(array).all() for array in first.arrays.values())
                if text.eval is not None:
                    list(text.eval.batches(1))
            kept = [path for path in folder.glob("cache/*/*") if path.suffix != ".lock"]
            whole = ("manifest.json", "tokenizer.json", "hashes.bin")  # of tokens, tokenizers and documents
            assert all(any((path / name).is_file() for name in whole) for path in kept), kept

    search(count, case, corpora())
    record_property("fuzz_cases", count)


def _word_piece() -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "##s", "a"]
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(words[:5])
    return backend.to_str()


def _unigram() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [("<unk>", 0.0), ("\u2581", -2.0), ("\u2581the", -1.0), ("dog", -3.0), ("s", -4.0), ("<0x0A>", -9.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend.to_str()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> list[dict[str, bytes]]:
    """The files of a sound tokenizer of each kind."""
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe(["the dogs and the dog"] * 3, 262, folder)
    found = [{path.name: path.read_bytes() for path in folder.iterdir()}]
    config = json.dumps({"eos_token": {"content": "[SEP]"}, "tokenizer_class": "BertTokenizer"}).encode()
    found.append({"tokenizer.json": _word_piece().encode(), "tokenizer_config.json": config})
    found.append({"tokenizer.json": _unigram().encode()})
    return [*found, {"tokenizer.json": b'{"kind": "bytes"}'}]


@lengths(80, 1500)
def test_tokenizers(count, tokenizers, record_property):
    def case(draws):
        sound = draws.draw(st.sampled_from(tokenizers))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, content in sound.items():
                (folder / file).write_bytes(content)
            spoil_file(draws.draw, folder / draws.draw(st.sampled_from(sorted(sound))))
            with attempt():
                tokenizer = data.load_tokenizer(folder)
                text = "the dogs, Zürich\n"
                ids = tokenizer.encode(text)
                assert all(0 <= id_ < tokenizer.vocab_size for id_ in ids)
                assert [list(each) for each in tokenizer.encode_batch([text])] == [list(ids)]
                assert isinstance(tokenizer.decode(ids), str)
                assert len(tokenizer.word_starts) == tokenizer.vocab_size
                data.save_tokenizer(tokenizer, folder / "copy")
                assert data.load_tokenizer(folder / "copy").digest == tokenizer.digest

    search(count, case, st.data())
    record_property("fuzz_cases", count)
