"""Hugging Face folders, written and read by the library alone: every bit comes back, and damage is named."""

import dataclasses
import json
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import models
from bigjax.config import ModelConfig, MoeConfig, RopeConfig, replaced
from bigjax.interop import hf
from bigjax.interop.hf import verify as hf_verify
from bigjax.interop.hf.architecture import HuggingFaceError
from bigjax.interop.hf.config import disagreements, end_ids, import_config
from bigjax.params import names
from tests.models_of import changed, model_of

GPT2 = model_of(vocab_size=61, num_layers=2, d_model=24, num_heads=3, max_seq_len=40)
LLAMA = dataclasses.replace(
    GPT2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    d_ff=28,
    positions="rotary",
    norm="rmsnorm",
    activation="swiglu",
    bias="none",
    tie_embeddings=False,
)
GEMMA2 = dataclasses.replace(
    LLAMA,
    norm="rmsnorm_unit_offset",
    norm_placement="sandwich",
    activation="geglu",
    tie_embeddings=True,
    scale_embeddings=True,
    attn_scale=7**-0.5,
    attn_softcap=50.0,
    final_softcap=30.0,
    layer_windows=(4, 0),
)
BERT = dataclasses.replace(
    GPT2,
    family="encoder",
    token_types=2,
    norm_placement="post",
    norm_eps=1e-12,
    activation="gelu",
    d_ff=28,
    dropout=0.1,
)
T5 = changed(
    GPT2,
    family="encdec",
    num_decoder_layers=3,
    head_dim=10,
    d_ff=28,
    positions="relative",
    relative_buckets=8,
    relative_max_distance=20,
    norm="rmsnorm",
    norm_eps=1e-6,
    activation="relu",
    bias="none",
    attn_scale=1.0,
    scale_logits=True,
)
T5_V1_1 = changed(T5, activation="geglu", tie_embeddings=False, scale_logits=False)
YARN = RopeConfig(theta=5e5, scaling="yarn", factor=4.0, original_max_seq_len=16, beta_fast=8.0, beta_slow=2.0)
LLAMA3 = RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_seq_len=16, low_freq_factor=2.0)
CASES: dict[str, tuple[str, ModelConfig]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2, untied, squared relu": (
        "GPT2LMHeadModel",
        dataclasses.replace(GPT2, tie_embeddings=False, activation="relu_squared", dropout=0.1),
    ),
    "llama": ("LlamaForCausalLM", dataclasses.replace(LLAMA, rope=LLAMA3)),
    "llama, tied, yarn": ("LlamaForCausalLM", dataclasses.replace(LLAMA, tie_embeddings=True, rope=YARN)),
    "mistral": ("MistralForCausalLM", dataclasses.replace(LLAMA, sliding_window=5)),
    "qwen2": ("Qwen2ForCausalLM", dataclasses.replace(LLAMA, bias="qkv")),
    "qwen2, a window on later layers": (
        "Qwen2ForCausalLM",
        dataclasses.replace(LLAMA, bias="qkv", layer_windows=(0, 5)),
    ),
    "qwen3": ("Qwen3ForCausalLM", dataclasses.replace(LLAMA, qk_norm=True, rope=RopeConfig(theta=1e6))),
    "mixtral": (
        "MixtralForCausalLM",
        # Of an odd width, which the kernel that transformers takes for experts by itself does not compute.
        dataclasses.replace(
            LLAMA, d_ff=27, moe=MoeConfig(num_experts=3, aux_loss=0.02, z_loss=0.1), rope=RopeConfig(theta=1e6)
        ),
    ),
    "gemma2": ("Gemma2ForCausalLM", GEMMA2),
    "gemma2 without caps": (
        "Gemma2ForCausalLM",
        dataclasses.replace(GEMMA2, attn_softcap=None, final_softcap=None, attn_scale=None),
    ),
    "bert": ("BertForMaskedLM", BERT),
    "bert of classes": (
        "BertForSequenceClassification",
        dataclasses.replace(BERT, head="classification", num_classes=3, activation="gelu_tanh"),
    ),
    "bert of words": (
        "BertForTokenClassification",
        dataclasses.replace(BERT, head="token_classification", num_classes=5),
    ),
    "bert of answers": ("BertForQuestionAnswering", dataclasses.replace(BERT, head="question_answering")),
    "bert of pairs": ("BertForNextSentencePrediction", dataclasses.replace(BERT, head="next_sentence")),
    "bert as pre-trained": ("BertForPreTraining", dataclasses.replace(BERT, head="lm_next_sentence")),
    "bert without a head": ("BertModel", dataclasses.replace(BERT, head="pooler", token_types=1, activation="relu")),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5, as deep on both sides": ("T5ForConditionalGeneration", changed(T5, num_decoder_layers=0)),
    "t5 v1.1": ("T5ForConditionalGeneration", T5_V1_1),
    "t5 v1.1 with another gate": ("T5ForConditionalGeneration", dataclasses.replace(T5_V1_1, activation="swiglu")),
}


def random_params(cfg: ModelConfig, dtype: Any = np.float32) -> Any:
    """Return parameters small enough for float32 to tell two implementations from two models."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda spec: (0.2 * rng.standard_normal(spec.shape)).astype(dtype), models.build(cfg).specs)


def assert_same_bits(actual: Any, expected: Any) -> None:
    actual, expected = names(actual), names(expected)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A checkpoint that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("hf") / "llama"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_verify, "find_spec", lambda name: None)
        hf.export_checkpoint(random_params(LLAMA), LLAMA, folder)
    return folder


@pytest.fixture(autouse=True)
def without_pytorch(monkeypatch):
    """Loading with transformers has tests of its own, in parity/."""
    monkeypatch.setattr(hf_verify, "find_spec", lambda name: None)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_exported_is_imported_bit_for_bit(tmp_path, case, dtype):
    class_name, cfg = CASES[case]
    params = random_params(cfg, dtype)
    report = hf.export_checkpoint(params, cfg, tmp_path / "a")
    assert (report["architecture"], report["dtype"]) == (class_name, np.dtype(dtype).name)
    found, imported = hf.import_checkpoint(tmp_path / "a")
    assert disagreements(found, cfg) == []
    assert (found.dropout, found.dtype) == (cfg.dropout, "bfloat16" if dtype == jnp.bfloat16 else "float32")
    assert_same_bits(imported, params)
    hf.export_checkpoint(imported, found, tmp_path / "b")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_without_pytorch_the_export_says_that_it_is_not_verified(tmp_path):
    report = hf.export_checkpoint(random_params(GPT2), GPT2, tmp_path)
    assert report["verified"] is None and "PyTorch is not installed" in report["reason"]
    assert json.loads((tmp_path / "bigjax_export.json").read_text()) == report


def test_shards_are_no_larger_than_asked_and_read_as_one(tmp_path):
    params = random_params(LLAMA)
    limit = 10_000
    report = hf.export_checkpoint(params, LLAMA, tmp_path, max_shard_bytes=limit)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert [shard.name for shard in shards] == report["files"]
    assert len(shards) > 3 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(sum(tensor.nbytes for tensor in load_file(shard).values()) <= limit for shard in shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in jax.tree.leaves(params))
    assert_same_bits(hf.import_checkpoint(tmp_path)[1], params)


def test_import_holds_the_model_and_no_second_shard(tmp_path):
    cfg = dataclasses.replace(LLAMA, d_model=160, d_ff=400, vocab_size=1000, num_layers=4)
    params = random_params(cfg, jnp.bfloat16)
    hf.export_checkpoint(params, cfg, tmp_path, max_shard_bytes=400_000)
    model = sum(array.nbytes for array in jax.tree.leaves(params))
    largest = max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    tracemalloc.start()
    hf.import_checkpoint(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest < model / 2
    assert model < peak < model + 2 * largest


def test_a_run_gets_the_weights_in_its_dtype_and_on_its_mesh(tmp_path):
    from bigjax import sharding
    from tests.conftest import mesh_of

    params = random_params(LLAMA, jnp.bfloat16)
    hf.export_checkpoint(params, LLAMA, tmp_path)
    mesh_cfg, mesh = mesh_of(data=1, fsdp=4, tensor=2)
    specs = models.build(LLAMA).specs
    layout = sharding.layout(mesh_cfg, mesh, specs)
    abstract = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(
            spec.shape, jnp.float32, sharding=jax.NamedSharding(mesh, layout.param(spec))
        ),
        specs,
    )
    loaded = hf.load_params(tmp_path, LLAMA, abstract)
    assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(lambda x: x.sharding, abstract)
    assert_same_bits(jax.device_get(loaded), jax.tree.map(lambda w: w.astype(np.float32), params))


def test_a_gpt2_checkpoint_of_the_bare_model_with_buffers_is_read(tmp_path):
    """As OpenAI's weights are published: no prefix, and masks among the tensors."""
    params = random_params(GPT2)
    hf.export_checkpoint(params, GPT2, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors |= {
        f"h.{i}.attn.{mask}": np.ones((1, 1, 4, 4), np.float32) for i in (0, 1) for mask in ("bias", "masked_bias")
    }
    save_file(tensors, path)
    assert_same_bits(hf.import_checkpoint(tmp_path)[1], params)


def test_a_second_copy_of_a_tied_table_is_accepted(tmp_path):
    params = random_params(GEMMA2)
    hf.export_checkpoint(params, GEMMA2, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_bits(hf.import_checkpoint(tmp_path)[1], params)


def test_the_fields_in_which_a_run_differs_are_named(sound):
    cfg = dataclasses.replace(LLAMA, d_ff=32, sliding_window=7, dropout=0.3, remat="full", dtype="bfloat16")
    with pytest.raises(HuggingFaceError) as caught:
        hf.check_same_model(sound, cfg)
    assert str(caught.value).split("\n")[1:] == [
        "  model.d_ff: 28 there, 32 here",
        "  model.sliding_window: None there, 7 here",
    ]
    assert f"--config=hf:{sound} is a config for it" in str(caught.value)
    hf.check_same_model(sound, dataclasses.replace(LLAMA, dropout=0.3, remat="full", dtype="bfloat16"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu_squared"}, "model.activation: 'swiglu' there, 'relu_squared' here"),
        ({"rope": RopeConfig(theta=5.0), "positions": "none"}, "model.positions: 'rotary' there, 'none' here"),
        ({"layer_windows": (0, 5)}, "model.layer_windows: [] there, [0, 5] here"),
        # Logits are divided by a width that no config.json says.
        ({"parametrization": "mup", "mup.base_d_model": 12}, "model.parametrization: 'standard' there, 'mup' here"),
    ],
    ids=str,
)
def test_a_model_that_no_architecture_holds_is_not_exported(tmp_path, change, message):
    cfg = replaced(LLAMA, change)
    if "layer_windows" in change:
        cfg = dataclasses.replace(cfg, norm="layernorm", bias="all", activation="gelu", positions="learned", head_dim=6)
    with pytest.raises(HuggingFaceError, match="no covered Hugging Face architecture holds this model") as caught:
        hf.export_checkpoint(random_params(cfg), cfg, tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_to(sound):
    with pytest.raises(HuggingFaceError, match="is not an empty folder: choose another for the export"):
        hf.export_checkpoint(random_params(LLAMA), LLAMA, sound)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(7, [5, 9], [5, 9]), (7, 5, [5]), ([7, 8], "absent", [7, 8]), (7, None, []), (None, "absent", [])],
)
def test_the_ends_of_texts_are_those_of_transformers(tmp_path, config, generation, expected):
    """Instruction-tuned models have several; a `generation_config.json` alone decides where there is one."""
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
    if generation != "absent":
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert end_ids(tmp_path) == expected


def test_ends_of_texts_that_are_no_ids_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(HuggingFaceError, match=r"config.json: eos_token_id='</s>' is neither a token's id nor a list"):
        end_ids(tmp_path)


def test_defaults_are_those_of_transformers(tmp_path):
    """What a config.json leaves out; compared with the classes themselves, which need no PyTorch."""
    import transformers

    from bigjax.interop.hf.config import ARCHITECTURES

    for kind in {each.model_type for each in ARCHITECTURES}:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        empty = import_config(tmp_path).model
        full = transformers.AutoConfig.for_model(kind).to_dict()
        (tmp_path / "config.json").write_text(json.dumps(full))
        assert disagreements(import_config(tmp_path).model, empty) == []
        if kind != "t5":  # whose second depth is written out
            assert import_config(tmp_path).model == empty
