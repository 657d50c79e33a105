"""Special tokens that are spelled out: tokens in prompts, as transformers reads them, and letters in training text."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bigjax import data
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.data.tokens.tokenizers import ByteTokenizer, load_tokenizer
from bigjax.evaluate.likelihood import Scorer
from bigjax.evaluate.writing import prompt_of

CHAT = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
SENTINELS = "The <extra_id_0> walks in <extra_id_1> park"


@pytest.fixture
def chat(tmp_path):
    """A byte-level BPE with the tokens of ChatML."""
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return saved(backend, tmp_path, eos_token="<|im_end|>")


@pytest.fixture
def unigram(tmp_path):
    """A vocabulary as T5's: pieces after U+2581, sentinels, and `</s>` after every text."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((c, -3.0) for c in "Thewalksinpr")]
    backend = Tokenizer(models.Unigram([*dict(pieces).items()], 2))
    backend.normalizer = normalizers.Replace(" {2,}", " ")
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens([AddedToken(f"<extra_id_{n}>", lstrip=True) for n in range(2)])
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return saved(backend, tmp_path, eos_token="</s>")


def saved(backend, folder, **settings):
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    )
    return folder


@pytest.mark.parametrize(("name", "text"), [("chat", CHAT), ("unigram", SENTINELS), ("chat", "no token, <|im_|>")])
def test_prompts_are_read_as_by_transformers(name, text, request):
    transformers = pytest.importorskip("transformers", reason="parity with its tokenizers needs transformers")
    folder = request.getfixturevalue(name)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))(text, add_special_tokens=False)["input_ids"]
    ours = load_tokenizer(folder).with_special()
    assert ours.encode(text).tolist() == theirs
    ids, ends = prompt_of(Config(), ours, text)
    assert (ids, ends) == (theirs, None)


def test_a_question_is_read_as_a_prompt_and_a_text_is_not(chat):
    tokenizer, cfg = load_tokenizer(chat), Config(ModelConfig(vocab_size=300))
    scorer = Scorer(cfg, None, None, tokenizer, None)  # pyright: ignore[reportArgumentType]
    first, second = scorer._encode(CHAT, " Fine.<|im_end|>")
    im_start, im_end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    assert sum(id_ == im_start for id_ in first) == 2 and second[-1] == im_end
    assert im_start not in tokenizer.encode(CHAT)
    assert tokenizer.decode(tokenizer.encode(CHAT)) == CHAT


@pytest.mark.parametrize("special", [False, True])
def test_training_text_spells_letters_unless_asked(chat, special, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": CHAT}) + "\n")
    cfg = Config(
        ModelConfig(vocab_size=300),
        DataConfig(
            sources=(f"jsonl:{tmp_path}/a.jsonl",),
            tokenizer=f"hf:{chat}",
            holdout=0.0,
            seq_len=128,
            cache_dir=str(tmp_path / "cache"),
            special_tokens=special,
        ),
        TrainConfig(global_batch_size=1),
    )
    text = data.build(cfg, slice(0, 1))
    (batch,) = text.score_set("train").batches()
    start = text.tokenizer.token_id("<|im_start|>")
    tokens = np.append(batch.arrays["tokens"][0], batch.arrays["targets"][0])
    assert (start in tokens) is special
    # All but the first token are targets, and together stand for the bytes of the text after it.
    assert batch.arrays["bytes"].sum() == len(CHAT.encode()) - (len("<|im_start|>") if special else 1)


def test_both_ways_have_a_digest_of_their_own(chat):
    tokenizer = load_tokenizer(chat)
    assert tokenizer.with_special().digest != tokenizer.digest
    assert tokenizer.with_special().with_special().digest == tokenizer.with_special().digest
    assert ByteTokenizer().with_special().encode("<|im_start|>").tolist() == list(b"<|im_start|>")
