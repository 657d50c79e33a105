"""The bytes of a row are those of its text, whatever a tokenizer makes of it; two ways to bits per byte agree."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bigjax import data
from bigjax import models as families
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data.tokens.text_bytes import aligned
from bigjax.data.tokens.tokenizers import load_file
from bigjax.evaluate.likelihood import LikelihoodError, Scorer
from bigjax.evaluate.scoring import score
from bigjax.evaluate.tasks import rolling_scores
from bigjax.sharding import UNSHARDED
from bigjax.train import step

TEXTS = ["the cat  sat on the mat ", " naïve café, zażółć gęślą jaźń", "天地玄黃 and cafe\u0301 🎉", "a b c d e f g h"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sentencepiece(*, space: bool = True, prefix: bool = False, form: bool = False, start: bool = False):
    """A BPE without merges as converted from SentencePiece: a space is U+2581, rare characters are bytes `<0xNN>`."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *["\u2581"] * space]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.NFKC()] * form + [normalizers.Prepend("\u2581")] * prefix
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if start:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return backend


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def composed():
    backend = byte_level()
    backend.normalizer = normalizers.NFC()
    return backend


def word_piece():
    tokens = ["[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


KINDS = {
    "byte fallback without a token for the space": lambda: sentencepiece(space=False),
    "a space before the text": lambda: sentencepiece(prefix=True),
    "another form, and a start": lambda: sentencepiece(form=True, start=True, space=False),
    "byte-level": byte_level,
    "byte-level in another form": composed,
    "WordPiece": word_piece,
}


def config(folder: Path, kind: str, texts, **options) -> Config:
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Config(
        ModelConfig(vocab_size=320, num_layers=1, d_model=16, num_heads=2, max_seq_len=512, init_std=0.5),
        DataConfig(
            sources=(f"jsonl:{folder}/texts.jsonl",),
            tokenizer=f"hf:{folder}/tokenizer.json",
            holdout=0.0,
            cache_dir=str(folder / "cache"),
            **options,
        ),
        TrainConfig(global_batch_size=1),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("document_mask", [True, False])
def test_the_bytes_of_the_rows_are_those_of_the_text(kind, document_mask, tmp_path):
    cfg = config(tmp_path, kind, TEXTS, seq_len=16, document_mask=document_mask)
    text = data.build(cfg, slice(0, 1))
    counted = sum(int(batch.arrays["bytes"].sum()) for batch in text.score_set("train").batches())
    # The first token is no target: of every document, or of the first.
    first = []
    for one in TEXTS if document_mask else TEXTS[:1]:
        (ids, spans), opening = text.tokenizer.encode_spans([one])[0], text.tokenizer.opening
        own = 1 if kind == "byte-level" else aligned(one, spans)[0]  # a token is a byte there
        first.append(0 if opening else own)
        assert aligned(one, spans).sum() == len(one.encode())
        assert len(ids) == len(spans)
    assert counted == sum(len(one.encode()) for one in TEXTS) - sum(first)


def test_tokens_are_laid_on_their_text():
    spans = load_tokens("byte fallback without a token for the space", "a é世")
    assert aligned("a é世", spans).tolist() == [1, 0, 0, 1, 0, 2, 0, 0, 3]
    assert aligned("  Ab  c ", load_tokens("WordPiece", "  Ab  c ")).tolist() == [3, 1, 4]
    assert aligned("e\u0301x", load_tokens("byte-level in another form", "e\u0301x")).sum() == 4
    assert aligned("   ", np.zeros((0, 2), np.int64)).tolist() == []


def load_tokens(kind: str, text: str) -> np.ndarray:
    return np.array(KINDS[kind]().encode(text, add_special_tokens=False).offsets)


@pytest.mark.parametrize(
    "kind", ["byte fallback without a token for the space", "a space before the text", "WordPiece"]
)
def test_the_two_ways_to_bits_per_byte_differ_by_the_first_token_alone(kind, tmp_path, one_device):
    """`rolling` counts the first token of a text, and the loss on a row, which has nothing before it, does not."""
    cfg = config(tmp_path, kind, TEXTS[:1], seq_len=256)
    text = data.build(cfg, slice(0, 1))
    model = families.build(cfg.model)
    params = step.init_state(cfg, model, step.optax.sgd(0.0)).params
    eval_step = jax.jit(step.make_eval_step(cfg, model))
    trained = score(eval_step, params, text.score_set("train").batches(), 1)
    scorer = Scorer(cfg, model, params, text.tokenizer, UNSHARDED)
    ids, spans = text.tokenizer.encode_spans(TEXTS[:1])[0]
    own = aligned(TEXTS[0], spans)
    # In nats: all but the first token after the prefix that `rolling` puts before it, which the row lacks; so compare
    # what each divides by.
    assert trained["tokens"] == len(ids) - (text.tokenizer.eos_id is None)  # the end of text is one, of no byte
    assert trained["bits_per_byte"] == pytest.approx(
        trained["loss"] * trained["tokens"] / (own.sum() - own[0]) / math.log(2), rel=1e-6
    )
    if kind == "WordPiece":
        with pytest.raises(LikelihoodError, match="the tokenizer has no token to start a text with"):
            scorer.rolling(TEXTS[:1])
        return
    rolled = rolling_scores(scorer, TEXTS[:1])
    total = sum(scorer.rolling(TEXTS[:1]))
    assert rolled["bits_per_byte"] == pytest.approx(-total / own.sum() / math.log(2), rel=1e-6)


def test_a_cached_count_of_another_text_is_an_error(tmp_path):
    cfg = config(tmp_path, "WordPiece", TEXTS, seq_len=16)
    data.build(cfg, slice(0, 1)).score_set("train")
    (found,) = (tmp_path / "cache").glob("bytes/*/bytes.bin")
    found.write_bytes(found.read_bytes()[:-4])
    with pytest.raises(data.DataError, match=r"bytes\.bin is not that of the text: delete"):
        data.build(cfg, slice(0, 1)).score_set("train")


def test_word_piece_tells_bytes_by_the_text(tmp_path):
    word_piece().save(str(tmp_path / "tokenizer.json"))
    assert load_file(tmp_path / "tokenizer.json").token_bytes is None
