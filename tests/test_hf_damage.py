"""What is wrong with a Hugging Face folder is said in one sentence that names the file and the field or tensor."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax.interop import hf, hf_verify
from bigjax.interop.hf_architecture import HuggingFaceError
from tests.test_hf_weights import LLAMA, random_params


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
        r"the architecture 'mamba' is not covered; covered are gpt2, llama, mistral, qwen2, qwen3, mixtral, gemma2$",
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
