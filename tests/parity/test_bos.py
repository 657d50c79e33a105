"""What a tokenizer.json puts before a text, `<bos>` of Llama and Gemma, against transformers on the same folder."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is transformers on PyTorch")

from transformers import AutoTokenizer  # noqa: E402

from bigjax import data, models  # noqa: E402
from bigjax.config import Config, DataConfig, TrainConfig  # noqa: E402
from bigjax.data.tokens.bpe import train_bpe  # noqa: E402
from bigjax.evaluate import generation, writing  # noqa: E402
from bigjax.evaluate.likelihood import Scorer  # noqa: E402
from bigjax.sharding import UNSHARDED  # noqa: E402
from tests.parity import peers  # noqa: E402
from tests.parity.peers import LLAMA, TEXT  # noqa: E402

BOS, S = 285, 24
MODEL = dataclasses.replace(LLAMA, num_layers=2, max_seq_len=S)
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
}
PROCESSORS = {  # and what each puts before a text
    "Llama 2, Mistral, Gemma": (TEMPLATE, (BOS,)),
    "Llama 3": ({"type": "Sequence", "processors": [BYTES, TEMPLATE]}, (BOS,)),
    "GPT-2, Qwen2": (BYTES, ()),
    "none": (None, ()),
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe([TEXT], BOS, folder)
    return json.loads((folder / "tokenizer.json").read_text())


def write(folder, vocabulary, processor):
    """Write the vocabulary with a `<bos>` and a post-processor, and a tokenizer_config.json as Llama's are."""
    bos = {**vocabulary["added_tokens"][0], "id": BOS, "content": "<bos>"}
    changed = {"added_tokens": [*vocabulary["added_tokens"], bos], "post_processor": processor}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary | changed))
    names = {"bos_token": "<bos>", "eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    # Left over in many folders; beside a tokenizer.json transformers does not read it.
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"add_bos_token": processor is None}))
    return data.load_tokenizer(folder)


def run(folder) -> Config:
    (folder / "text.txt").write_text(TEXT)
    paths = {"tokenizer": f"hf:{folder}/tokenizer.json", "cache_dir": str(folder / "cache")}
    source = DataConfig(sources=(f"text:{folder}/text.txt",), seq_len=S, holdout=0.0, **paths)
    return Config(MODEL, source, TrainConfig(global_batch_size=4))


@pytest.mark.parametrize("name", PROCESSORS)
def test_prompts_and_documents_start_as_in_transformers(name, vocabulary, tmp_path):
    processor, opening = PROCESSORS[name]
    tokenizer = write(tmp_path, vocabulary, processor)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.opening, tokenizer.bos_id) == (opening, BOS)
    cfg = run(tmp_path)
    for text in ("the cat", " sat", "là"):
        assert writing.prompt_of(cfg, tokenizer, text)[0] == theirs(text).input_ids
    first = data.build(cfg, slice(0, 4)).train.sources[0].arrays(np.arange(1), np.arange(1))["tokens"][0]
    assert first.tolist() == theirs(TEXT).input_ids[:S]
    data.save_tokenizer(tokenizer, tmp_path / "run")
    again = data.load_tokenizer(tmp_path / "run")
    assert (again.opening, again.bos_id, again.digest) == (opening, BOS, tokenizer.digest)


@torch.no_grad()
def test_what_is_written_and_scored_after_bos_is_what_transformers_writes_and_scores(vocabulary, tmp_path):
    tokenizer = write(tmp_path, vocabulary, TEMPLATE)
    theirs, peer = AutoTokenizer.from_pretrained(tmp_path), peers.build(MODEL)
    cfg, model, weights = run(tmp_path), models.build(MODEL), peers.weights(peer, MODEL)
    prompt = writing.prompt_of(cfg, tokenizer, "the cat")[0]
    (written,) = generation.generate(model, weights, [prompt], max_new_tokens=8, temperature=0.0)
    asked = theirs("the cat", return_tensors="pt")
    expected = peer.generate(**asked, do_sample=False, max_new_tokens=8, pad_token_id=0)[0]
    assert written == expected[len(prompt) :].tolist()
    # A text by itself, one after a context, and a whole text: all after <bos>, which is itself not scored.
    scorer = Scorer(cfg, model, weights, tokenizer, UNSHARDED)
    for context, text in (("", "gather"), ("the cat", " sat")):
        ids = theirs(context + text, return_tensors="pt").input_ids
        log_probs = torch.log_softmax(peer(ids[:, :-1]).logits[0].double(), dim=-1)
        nats = log_probs.gather(1, ids[0, 1:, None])[len(theirs(context).input_ids) - 1 :].sum().item()
        assert scorer.after([(context, text)])[0].log_prob == pytest.approx(nats, abs=2e-4)  # as in test_likelihood
        if not context:
            assert scorer.rolling([text])[0] == pytest.approx(nats, abs=2e-4)
