"""What is wrong with a Hugging Face folder is said in one sentence that names the file and the field or tensor."""

import json
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax.config import ModelConfig
from bigjax.interop import hf
from bigjax.interop.hf import verify as hf_verify
from bigjax.interop.hf.architecture import HuggingFaceError
from bigjax.interop.hf.config import ARCHITECTURES
from tests.interop.test_hf_weights import CASES, LLAMA, random_params


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
        r"lm_head.weight is not model.embed_tokens.weight, which it repeats in a LlamaForCausalLM with this config"
        r'.json: if it is a matrix of its own, set "tie_word_embeddings" to false in config.json$',
    ),
    "architecture": (
        edit_config(model_type="mamba"),
        r"'mamba' is not covered; covered are gpt2, llama, mistral, qwen2, qwen3, mixtral, gemma2, bert, t5$",
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
        lambda f: (f / "model.safetensors").rename(f / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
        r"index.json has no weight_map from tensors to files$",
    ),
}


def a_matrix(folder: Path) -> str:
    """Return the name of a matrix of the second layer, or of the second block."""
    tensors = load_file(folder / "model.safetensors")
    return next(name for name, w in tensors.items() if re.search(r"\.1\.", name) and w.ndim == 2)


def change_matrix(change):
    """Change a matrix as `change` says, or remove it."""

    def edit(folder: Path) -> None:
        name = a_matrix(folder)
        edit_tensors(lambda tensors: tensors.update({name: change(tensors[name])}))(folder)

    return edit


def lose_matrix(folder: Path) -> None:
    name = a_matrix(folder)
    edit_tensors(lambda tensors: tensors.pop(name))(folder)


DAMAGES_OF_ALL = {
    name: DAMAGES[name]
    for name in ("pickle", "no weights", "cut short", "extra tensors", "an unknown option", "adapter")
} | {
    "missing tensor": (lose_matrix, r" lacks {matrix}$"),
    "shape": (
        change_matrix(lambda w: np.concatenate([w, w])),
        r"{matrix} has \(\d+, \d+\), not \(\d+, \d+\) by config.json$",
    ),
    "integers": (change_matrix(lambda w: w.astype(np.int8)), r"{matrix} is I8, which is not covered, only \["),
    "a dtype of its own": (
        change_matrix(lambda w: w.astype(np.float16)),
        r" is float(16|32), but the same tensor of another layer is not$",
    ),
    "vocabulary": (edit_config(vocab_size=64), r"has a vocabulary of 61, but vocab_size=64 by config.json$"),
    "another class": (
        edit_config(architectures=["BertForSquares"]),
        r"architectures='BertForSquares' is not covered, only ",
    ),
}
"""What can be wrong with the folder of any architecture; `{matrix}` stands for the name of the damaged tensor."""

OPTIONS = [
    ("bert", {"position_embedding_type": "relative_key"}, r"'relative_key' is not covered, only 'absolute'$"),
    ("bert", {"is_decoder": True}, r"is_decoder=True is not covered, only False$"),
    ("bert", {"tie_word_embeddings": False}, r"tie_word_embeddings=False is not covered, only True$"),
    ("bert", {"hidden_act": "silu"}, r"hidden_act='silu' is not covered, only 'gelu' or "),
    ("bert", {"hidden_dropout_prob": 0.2}, r"'attention_probs_dropout_prob': 0.1\} differ, which is not covered"),
    ("bert of classes", {"problem_type": "regression"}, r"problem_type='regression' is not covered"),
    ("bert of classes", {"classifier_dropout": 0.3}, r"classifier_dropout=0.3 is not covered, only 0.1$"),
    ("bert of classes", {"id2label": {"0": "score"}}, r"id2label has one label, a regression, which is not covered$"),
    ("bert of classes", {"id2label": {"0": "a", "1": "b"}}, r"classifier.\w+ has \(3.*\), not \(2.*\) by config.json$"),
    ("bert without a head", {"architectures": ["BertForMaskedLM"]}, r" lacks cls.predictions.bias, "),
    ("t5", {"feed_forward_proj": "gated-relu"}, r"feed_forward_proj='gated-relu' is not covered, only 'relu' or "),
    ("t5", {"feed_forward_proj": "gated-gelu"}, r" lacks decoder.block.0.layer.2.DenseReluDense.wi_0.weight, "),
    ("t5", {"is_gated_act": True}, r"is_gated_act=True is not covered, only False$"),
    ("t5", {"is_encoder_decoder": False}, r"is_encoder_decoder=False is not covered, only True$"),
    ("t5", {"tie_word_embeddings": False}, r"scale_decoder_outputs=True is not covered, only False$"),
    ("t5", {"relative_attention_num_buckets": 6}, r"attention_bias.weight has \(8, 3\), not \(6, 3\) by config.json$"),
    (
        "t5 v1.1",
        {"scale_decoder_outputs": "absent", "tie_word_embeddings": True},
        r'lm_head.weight is not shared.weight, .* set "tie_word_embeddings" to false in config.json$',
    ),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return the checkpoint of a model that nothing is wrong with."""

    @lru_cache
    def export(cfg: ModelConfig) -> Path:
        folder = tmp_path_factory.mktemp("hf") / "sound"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hf_verify, "find_spec", lambda name: None)
            hf.export_checkpoint(random_params(cfg), cfg, folder)
        return folder

    return export


def damaged(folder: Path, tmp_path: Path, damage: Callable[[Path], None]) -> Path:
    shutil.copytree(folder, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    return tmp_path / "damaged"


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_is_said_in_one_sentence(sound, tmp_path, name):
    damage, message = DAMAGES[name]
    folder = damaged(sound(LLAMA), tmp_path, damage)
    with pytest.raises(HuggingFaceError, match=message) as caught:
        hf.import_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).count("\n") == (1 if name == "a wrong type" else 0)


@pytest.mark.parametrize("name", DAMAGES_OF_ALL)
@pytest.mark.parametrize("class_name", dict(CASES.values()))
def test_what_is_wrong_is_said_whatever_the_architecture(sound, tmp_path, class_name, name):
    damage, message = DAMAGES_OF_ALL[name]
    good = sound(dict(CASES.values())[class_name])
    folder = damaged(good, tmp_path, damage)
    with pytest.raises(HuggingFaceError, match=message.replace("{matrix}", re.escape(a_matrix(good)))) as caught:
        hf.import_checkpoint(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_every_architecture_is_damaged():
    covered = {each.class_name for each in ARCHITECTURES}
    assert covered == dict(CASES.values()).keys()


@pytest.mark.parametrize(("case", "changes", "message"), OPTIONS, ids=str)
def test_an_option_that_is_not_covered_is_named(sound, tmp_path, case, changes, message):
    folder = damaged(sound(CASES[case][1]), tmp_path, edit_config(**changes))
    with pytest.raises(HuggingFaceError, match=message) as caught:
        hf.import_checkpoint(folder)
    assert str(folder) in str(caught.value)
