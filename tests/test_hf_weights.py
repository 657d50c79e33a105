"""Hugging Face folders, written and read by the library alone: every bit comes back, and damage is named."""

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import models
from bigjax.config import ModelConfig, RopeConfig
from bigjax.interop import hf, hf_verify
from bigjax.interop.hf_architecture import HuggingFaceError
from bigjax.interop.hf_config import disagreements, import_config
from bigjax.params import names

GPT2 = ModelConfig(vocab_size=61, num_layers=2, d_model=24, num_heads=3, max_seq_len=40)
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
    "gemma2": ("Gemma2ForCausalLM", GEMMA2),
    "gemma2 without caps": (
        "Gemma2ForCausalLM",
        dataclasses.replace(GEMMA2, attn_softcap=None, final_softcap=None, attn_scale=None),
    ),
}


def random_params(cfg: ModelConfig, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda spec: rng.standard_normal(spec.shape).astype(dtype), models.build(cfg).specs)


def assert_same_bits(actual: Any, expected: Any) -> None:
    actual, expected = names(actual), names(expected)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


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


def edit_config(**changes):
    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))

    return edit


def edit_tensors(change):
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def edit_index(change):
    """Split the checkpoint into two shards, then change its index."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        half = len(tensors) // 2
        files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for file, part in zip(files, (list(tensors)[:half], list(tensors)[half:]), strict=True):
            save_file({name: tensors[name] for name in part}, folder / file)
        weight_map = {name: files[i >= half] for i, name in enumerate(tensors)}
        change(weight_map, folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return edit


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


Q = "model.layers.1.self_attn.q_proj.weight"
DAMAGES = {
    "pickle": (only_a_pickle, r"pytorch_model.bin is a pickle, which can run code when it is read, and is refused"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"has neither model.safetensors nor model.*index.json$",
    ),
    "cut short": (truncate, r"model.safetensors is damaged or cut short: "),
    "no config": (lambda f: (f / "config.json").unlink(), r" has no config.json$"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config.json cannot be read: "),
    "missing tensor": (edit_tensors(lambda t: t.pop(Q)), rf" lacks {Q}$"),
    "extra tensors": (
        edit_tensors(lambda t: t.update({f"extra.{i}": np.zeros(1) for i in range(5)})),
        r" has, and the model does not, extra.0, extra.1, extra.2 and 2 more$",
    ),
    "shape": (
        edit_tensors(lambda t: t.update({Q: t[Q].T.copy()})),
        rf"{Q} has \(24, 40\), not \(40, 24\) by config.json$",
    ),
    "integers": (
        edit_tensors(lambda t: t.update({Q: t[Q].astype(np.int8)})),
        rf"{Q} is I8, which is not covered, only \['F32', 'BF16', 'F16'\]$",
    ),
    "dtypes that differ by layer": (
        edit_tensors(lambda t: t.update({Q: t[Q].astype(np.float16)})),
        rf"{Q} is float16, but the same tensor of another layer is not$",
    ),
    "vocabulary": (
        edit_config(vocab_size=64),
        r"model.embed_tokens.weight has a vocabulary of 61, but vocab_size=64 by config.json$",
    ),
    "layers": (edit_config(num_hidden_layers=3), r" lacks model.layers.2.input_layernorm.weight, .* and 6 more$"),
    "a tied head that is another": (
        edit_config(tie_word_embeddings=True),
        r"lm_head.weight is not model.embed_tokens.weight, but config.json says that the two are tied$",
    ),
    "architecture": (
        edit_config(model_type="mamba"),
        r"the architecture 'mamba' is not covered; covered are gpt2, llama, mistral, qwen2, qwen3, gemma2$",
    ),
    "another head": (
        edit_config(architectures=["LlamaForSequenceClassification"]),
        r"architectures='LlamaForSequenceClassification' is not covered, only 'LlamaForCausalLM'$",
    ),
    "rope scaling": (
        edit_config(rope_scaling={"type": "dynamic", "factor": 2.0}),
        r"rope scaling='dynamic' is not covered, only 'default' or 'llama3' or 'yarn'$",
    ),
    "an option of rope": (
        edit_config(rope_scaling={"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}),
        r"mscale of rope scaling 'yarn' is not covered$",
    ),
    "a factor of rope": (
        edit_config(rope_scaling={"rope_type": "yarn", "factor": 2.0, "attention_factor": 2.0}),
        r"attention_factor=2.0 is not covered, only 0.1 ln\(factor\) \+ 1 = 1.069",
    ),
    "biases": (edit_config(attention_bias=True), r"attention_bias=True is not covered, only False$"),
    "activation": (
        edit_config(hidden_act="relu"),
        r"hidden_act='relu' is not covered, only 'silu' or 'swish' or 'gelu_pytorch_tanh'$",
    ),
    "quantised": (
        edit_config(quantization_config={"bits": 4}),
        r"quantization_config=\{'bits': 4\} is not covered$",
    ),
    "an unknown option": (edit_config(mup_scale=3.0), r"config.json: mup_scale=3.0 is not covered$"),
    "a wrong type": (edit_config(hidden_size="wide"), r"d_model='wide' is a str, expected an int at least 1$"),
    "no model": (edit_config(model_type="absent"), r"config.json is not the config of a Hugging Face model"),
    "adapter": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        r"adapter_config.json: a LoRA or other adapter is not covered: merge it into its model$",
    ),
    "a path that leaves the folder": (
        edit_index(lambda m, f: m.update({Q: "../model-00001-of-00002.safetensors"})),
        r"names '../model-00001-of-00002.safetensors', which is not a file of its folder$",
    ),
    "an absolute path": (
        edit_index(lambda m, f: m.update({Q: "/etc/passwd"})),
        r"names '/etc/passwd', which is not a file of its folder$",
    ),
    "a shard is missing": (
        edit_index(lambda m, f: (f / "model-00002-of-00002.safetensors").unlink()),
        r"model-00002-of-00002.safetensors is missing$",
    ),
    "a wrong shard": (
        edit_index(lambda m, f: m.update({Q: next(file for file in m.values() if file != m[Q])})),
        rf"safetensors does not have {Q}, which model.safetensors.index.json says it has$",
    ),
    "a tensor outside the index": (
        edit_index(lambda m, f: m.pop(Q)),
        rf"index.json does not list {Q}, which its files have$",
    ),
    "no weight map": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
        r"index.json has no weight_map from tensors to files$",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A checkpoint that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("hf") / "llama"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_verify, "find_spec", lambda name: None)
        hf.export_checkpoint(random_params(LLAMA), LLAMA, folder)
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_is_said_in_one_sentence(sound, tmp_path, name):
    damage, message = DAMAGES[name]
    folder = tmp_path / "damaged"
    shutil.copytree(sound, folder)
    damage(folder)
    with pytest.raises(HuggingFaceError, match=message) as caught:
        hf.import_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).count("\n") == (1 if name == "a wrong type" else 0)


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
    edit_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))(tmp_path)
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
    ],
    ids=str,
)
def test_a_model_that_no_architecture_holds_is_not_exported(tmp_path, change, message):
    cfg = dataclasses.replace(LLAMA, **change)
    if "layer_windows" in change:
        cfg = dataclasses.replace(cfg, norm="layernorm", bias="all", activation="gelu", positions="learned", head_dim=6)
    with pytest.raises(HuggingFaceError, match="no covered Hugging Face architecture holds this model") as caught:
        hf.export_checkpoint(random_params(cfg), cfg, tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_to(sound):
    with pytest.raises(HuggingFaceError, match="is not an empty folder: choose another for the export"):
        hf.export_checkpoint(random_params(LLAMA), LLAMA, sound)


def test_defaults_are_those_of_transformers(tmp_path):
    """What a config.json leaves out; compared with the classes themselves, which need no PyTorch."""
    import transformers

    from bigjax.interop.hf_config import ARCHITECTURES

    for kind in ARCHITECTURES:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        empty = import_config(tmp_path).model
        full = transformers.AutoConfig.for_model(kind).to_dict()
        (tmp_path / "config.json").write_text(json.dumps(full))
        assert import_config(tmp_path).model == empty
