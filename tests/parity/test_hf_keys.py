"""What a config.json says, or leaves out, is read as transformers reads it: the logits are the same, or both refuse.

Tolerance of logits: 1e-4, as of decoders in general (see test_hf_decoder.py).
"""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from bigjax import models  # noqa: E402
from bigjax.interop import hf  # noqa: E402
from bigjax.interop.hf.config import import_config  # noqa: E402
from bigjax.params import names  # noqa: E402
from tests.parity import folders  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 300, (2, 48))
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def assert_same_logits(folder):
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    cfg, params = hf.import_checkpoint(str(folder))
    family = models.build(cfg).family
    ours = jax.jit(lambda p: family.logits(p, family.apply(p, TOKENS, cfg)[0], cfg))(params)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    return cfg


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama whose queries and keys are large, so that other positions are other logits."""
    folder = tmp_path_factory.mktemp("keys") / "llama"
    folders.save("llama", folder, initializer_range=0.2)
    return folder


@pytest.fixture
def copy_of(llama, tmp_path):
    def copy(**said):
        for path in llama.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        folders.edit(tmp_path / "config.json", **said)
        return tmp_path

    return copy


@pytest.mark.parametrize(
    ("said", "factor"),
    [
        ({"rope_parameters": YARN | {"factor": None}}, 4.0),
        ({"rope_parameters": "absent", "rope_scaling": YARN | {"factor": None}, "rope_theta": 10000.0}, 4.0),
        ({"rope_parameters": without(YARN, "original_max_position_embeddings") | {"factor": None}}, 1.0),
        ({"rope_parameters": YARN | {"factor": 2.0, "beta_fast": None, "beta_slow": 0}}, 2.0),
        ({"rope_parameters": YARN | {"factor": 2.0}, "original_max_position_embeddings": 32}, 2.0),
        ({"rope_parameters": LLAMA3, "rope_scaling": YARN | {"factor": 3.0}}, 3.0),
        ({"rope_parameters": LLAMA3, "original_max_position_embeddings": 32}, 4.0),
        ({"rope_parameters": without(LLAMA3, "original_max_position_embeddings")}, 4.0),
    ],
    ids=str,
)
def test_scaling_of_positions(copy_of, said, factor):
    assert assert_same_logits(copy_of(**said)).rope.factor == factor


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        (YARN, "factor"),
        (without(LLAMA3, "factor"), "factor"),
        (without(LLAMA3, "low_freq_factor"), "low_freq_factor"),
        (without(LLAMA3, "high_freq_factor"), "high_freq_factor"),
    ],
)
def test_a_key_of_scaling_that_is_absent_is_refused_as_there(copy_of, parameters, key):
    folder = copy_of(rope_parameters=parameters)
    with pytest.raises(KeyError, match=key):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(hf.HuggingFaceError, match=rf"{key} of rope scaling '\w+' is absent: it needs a number$"):
        hf.import_checkpoint(folder)


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_a_key_of_scaling_that_is_null_is_refused(copy_of, key):
    with pytest.raises(hf.HuggingFaceError, match=rf"{key} of rope scaling 'llama3' is null or 0: it needs a number$"):
        hf.import_checkpoint(copy_of(rope_parameters=LLAMA3 | {key: None}))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_as_many_key_heads_as_heads_where_null_says_so(tmp_path, kind):
    said = {"head_dim": 16} if kind == "qwen3" else {}
    folders.save(kind, tmp_path, num_key_value_heads=4, **said)
    folders.edit(tmp_path / "config.json", num_key_value_heads=None)
    assert assert_same_logits(tmp_path).num_kv_heads == 4


def test_null_is_no_default(copy_of):
    """Where transformers refuses it, too."""
    folder = copy_of(rms_norm_eps=None)
    with pytest.raises(Exception, match="rms_norm_eps"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(hf.HuggingFaceError, match=r"config.json: rms_norm_eps is null: it needs a value, as 1e-06$"):
        hf.import_checkpoint(folder)


GENERATION = {key: value for key, value in GenerationConfig().to_dict().items() if not key.startswith("_")}
OTHER_VALUES = {"num_beams": 4, "max_length": 50, "min_length": 3, "early_stopping": True, "no_repeat_ngram_size": 3}
OTHER_VALUES |= {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "length_penalty": 2.0, "repetition_penalty": 1.2}
DESCRIBING = {"num_return_sequences": 2, "output_attentions": True, "pruned_heads": {}, "attn_implementation": "sdpa"}
DESCRIBING |= {"output_router_logits": True, "auto_map": {"AutoModel": "modeling_x.Model"}, "num_labels": 2}
DESCRIBING |= {"output_hidden_states": True, "return_dict": False, "chunk_size_feed_forward": 0}


def test_what_drives_generation_or_describes_is_accepted(copy_of, llama):
    """All that transformers lists, and what is found in the configs of published models."""
    plain = import_config(llama).model
    said = {**dict.fromkeys(GENERATION, 1), **PreTrainedConfig().to_dict(), **OTHER_VALUES, **DESCRIBING}
    for key in ("architectures", "model_type", "dtype", "is_encoder_decoder"):
        said.pop(key)
    for key, value in said.items():
        assert import_config(copy_of(**{key: value})).model == plain, key
    assert import_config(copy_of(**said)).model == plain


def test_what_drives_generation_changes_no_logit(copy_of):
    assert_same_logits(copy_of(**OTHER_VALUES))


@pytest.mark.parametrize(("key", "value"), [("pruned_heads", {"0": [1]}), ("is_encoder_decoder", True)])
def test_what_changes_the_model_is_not(copy_of, key, value):
    with pytest.raises(hf.HuggingFaceError, match=rf"{key}=.* is not covered$"):
        import_config(copy_of(**{key: value}))


def test_the_right_number_of_labels_is_accepted(tmp_path):
    BertForSequenceClassification(BertConfig(**folders.SMALL_BERT, num_labels=3)).save_pretrained(tmp_path)
    folders.edit(tmp_path / "config.json", num_labels=3)
    assert import_config(tmp_path).model.num_classes == 3


def rename(folder, old, new):
    tensors = load_file(folder / "model.safetensors")
    tensors[new] = tensors.pop(old)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2"])
def test_a_tied_table_stored_as_the_head_alone(tmp_path, kind):
    own = {"gemma2": {"head_dim": 16}, "gpt2": dict.fromkeys(("intermediate_size", "num_key_value_heads"))}
    folders.save(kind, tmp_path, tie_word_embeddings=True, **own.get(kind, {}))
    table = "transformer.wte.weight" if kind == "gpt2" else "model.embed_tokens.weight"
    rename(tmp_path, table, "lm_head.weight")
    assert_same_logits(tmp_path)


SMALL_T5 = {"vocab_size": 300, "d_model": 64, "d_kv": 16, "num_heads": 4, "num_layers": 2, "d_ff": 128}


@pytest.mark.parametrize(
    ("model", "table", "copy"),
    [
        (lambda: T5ForConditionalGeneration(T5Config(**SMALL_T5)), "shared.weight", "lm_head.weight"),
        (lambda: T5ForConditionalGeneration(T5Config(**SMALL_T5)), "shared.weight", "decoder.embed_tokens.weight"),
        (
            lambda: BertForMaskedLM(BertConfig(**folders.SMALL_BERT)),
            "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
        ),
    ],
    ids=["t5, lm_head", "t5, decoder", "bert"],
)
def test_other_families_whose_table_has_another_name(tmp_path, model, table, copy):
    """Whichever name whoever saved the folder kept."""
    theirs = model()
    theirs.save_pretrained(tmp_path / "whole")
    _, expected = hf.import_checkpoint(tmp_path / "whole")
    rename(tmp_path / "whole", table, copy)
    _, params = hf.import_checkpoint(tmp_path / "whole")
    for name, array in names(expected).items():
        np.testing.assert_array_equal(names(params)[name], array)
