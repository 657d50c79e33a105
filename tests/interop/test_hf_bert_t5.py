"""What BERT and T5 have in Hugging Face folders that decoders have not: old names, copies, heads of other tasks."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import models, sharding
from bigjax.config import Config, strict
from bigjax.data import save_tokenizer
from bigjax.data.tokens.tokenizers import ByteTokenizer
from bigjax.interop import hf
from bigjax.interop.hf import verify as hf_verify
from bigjax.interop.hf.config import disagreements, import_config
from bigjax.params import names
from bigjax.train import step
from configs import finetune_classification
from experiments import config_source
from tests.conftest import mesh_of
from tests.interop.test_hf_weights import BERT, T5, T5_V1_1, assert_same_bits, random_params

PAIRS = dataclasses.replace(BERT, head="lm_next_sentence")
TAGGER = dataclasses.replace(BERT, head="token_classification", num_classes=3)
READER = dataclasses.replace(BERT, head="question_answering")
CLASSIFIER = dataclasses.replace(BERT, head="classification", num_classes=3)
BARE = dataclasses.replace(BERT, head="pooler")


@pytest.fixture(autouse=True)
def without_pytorch(monkeypatch):
    monkeypatch.setattr(hf_verify, "find_spec", lambda name: None)


def export(cfg, folder, **how):
    params = random_params(cfg)
    hf.export_checkpoint(params, cfg, folder, **how)
    return params


def edit(folder, change, **values):
    """Change the tensors, then the config."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: x for key, x in said.items() if x != "absent"}))


def as_released(tensors):
    """As bert-base-uncased: norms by their old names, the output layer twice, and the head for next sentences."""
    for name in [name for name in tensors if "LayerNorm" in name]:
        tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    tensors["bert.embeddings.position_ids"] = np.arange(40)[None]
    tensors["cls.seq_relationship.weight"] = np.ones((2, 24), np.float32)
    tensors["cls.seq_relationship.bias"] = np.ones(2, np.float32)
    with_pooler(tensors)


def with_pooler(tensors):
    tensors["bert.pooler.dense.weight"] = np.arange(24 * 24, dtype=np.float32).reshape(24, 24)
    tensors["bert.pooler.dense.bias"] = np.full(24, 7, np.float32)


def test_bert_as_it_was_released(tmp_path):
    """Whether its heads are both asked for, or the one for masked tokens: `architectures` says it."""
    params = export(BERT, tmp_path)
    names_of_old = {"position_embedding_type": "absolute", "directionality": "bidi"}
    edit(tmp_path, as_released, architectures=["BertForMaskedLM"], **names_of_old)
    found, imported = hf.import_checkpoint(tmp_path)
    assert found.head == "lm"
    assert_same_bits(imported, params)
    edit(tmp_path, lambda tensors: None, architectures=["BertForPreTraining"])
    found, imported = hf.import_checkpoint(tmp_path)
    assert found.head == "lm_next_sentence"
    pooler, classes = np.arange(24 * 24, dtype=np.float32).reshape(24, 24).T, np.ones((2, 24), np.float32)
    added = {"pooler": pooler, "pooler_bias": np.full(24, 7, np.float32), "classes": classes}
    added["classes_bias"] = np.ones(2, np.float32)
    assert_same_bits(imported, params | {"head": params["head"] | added})


def test_of_both_heads_of_pre_training_none_may_be_missing(tmp_path):
    export(PAIRS, tmp_path)
    edit(tmp_path, lambda tensors: tensors.pop("cls.seq_relationship.weight"))
    with pytest.raises(hf.HuggingFaceError, match=r"lacks cls.seq_relationship.weight$"):
        hf.import_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("cfg", "said", "message"),
    [
        (READER, {"id2label": {"0": "a", "1": "b", "2": "c"}}, "id2label has 3 labels, but an answer has 2 ends"),
        (TAGGER, {"id2label": {"0": "a"}}, "id2label has one label, a regression, which is not covered"),
        (TAGGER, {"id2label": {"0": "a", "1": "b"}}, r"classifier.weight has \(3, 24\), not \(2, 24\) by config"),
        (TAGGER, {"classifier_dropout": 0.5}, "classifier_dropout=0.5 is not covered, only 0.1"),
    ],
)
def test_labels_that_do_not_suit_the_head_are_named(tmp_path, cfg, said, message):
    export(cfg, tmp_path)
    edit(tmp_path, lambda tensors: None, **said)
    with pytest.raises(hf.HuggingFaceError, match=message):
        hf.import_checkpoint(tmp_path)


def test_t5_as_it_was_released(tmp_path):
    params = export(T5, tmp_path)

    def change(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["decoder.embed_tokens.weight"] = tensors["shared.weight"]
        name = "decoder.block.0.layer.{}.relative_attention_bias.weight"
        tensors[name.format("1.EncDecAttention")] = tensors[name.format("0.SelfAttention")]

    edit(tmp_path, change, scale_decoder_outputs="absent", output_past=True, task_specific_params={"translation": {}})
    assert_same_bits(hf.import_checkpoint(tmp_path)[1], params)


@pytest.mark.parametrize(
    "said",
    [
        {"tie_word_embeddings": False, "scale_decoder_outputs": "absent"},
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_the_two_ways_of_saying_v1_1(tmp_path, said):
    export(T5_V1_1, tmp_path)
    edit(tmp_path, lambda tensors: None, **said)
    found = import_config(tmp_path).model
    assert (found.tie_embeddings, found.own.scale_logits) == (False, False)


@pytest.mark.parametrize(("cfg", "copy"), [(BERT, "cls.predictions.decoder.bias"), (T5, "encoder.embed_tokens.weight")])
def test_a_second_copy_that_is_another_is_named(tmp_path, cfg, copy):
    export(cfg, tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({copy: np.ones((61, 24), np.float32)}))
    with pytest.raises(hf.HuggingFaceError, match=f"{copy} is not .*, which it repeats in a "):
        hf.import_checkpoint(tmp_path)


def abstract(cfg, mesh_cfg, mesh):
    specs = models.build(cfg).specs
    layout = sharding.layout(mesh_cfg, mesh, specs)

    def one(spec):
        return jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=jax.NamedSharding(mesh, layout.param(spec)))

    return jax.tree.map(one, specs)


STARTS = {
    "a bare model": (BARE, None, CLASSIFIER, {"pooler", "pooler_bias"}),
    "masked tokens": (BERT, None, CLASSIFIER, set()),
    "masked tokens and what was trained beside": (BERT, with_pooler, CLASSIFIER, {"pooler", "pooler_bias"}),
    "as released": (BERT, as_released, CLASSIFIER, {"pooler", "pooler_bias"}),
    "other classes": (dataclasses.replace(CLASSIFIER, num_classes=5), None, CLASSIFIER, {"pooler", "pooler_bias"}),
    "the same classes": (CLASSIFIER, None, CLASSIFIER, {"classes", "classes_bias", "pooler", "pooler_bias"}),
    "both heads, for masked tokens": (PAIRS, None, BERT, {"dense", "dense_bias", "norm", "bias"}),
    "both heads, for classes": (PAIRS, None, CLASSIFIER, {"pooler", "pooler_bias"}),
    "masked tokens, for both heads": (BERT, None, PAIRS, {"dense", "dense_bias", "norm", "bias"}),
    "classes of texts, for those of words": (CLASSIFIER, None, TAGGER, set()),
    "classes of words, for answers": (TAGGER, None, READER, set()),
    "masked tokens, for answers": (BERT, as_released, READER, set()),
    "classes, for masked tokens": (CLASSIFIER, None, BERT, set()),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_run_with_another_head_starts_below_it(tmp_path, name):
    before, change, cfg, kept = STARTS[name]
    params = export(before, tmp_path)
    if change:
        edit(tmp_path, change)
    mesh_cfg, mesh = mesh_of(data=2, fsdp=4)
    wanted = abstract(cfg, mesh_cfg, mesh)
    loaded = hf.load_params(tmp_path, cfg, wanted, new_head=True)
    assert set(loaded.get("head", {})) == kept
    for part in ("embed", "blocks"):
        assert_same_bits(jax.device_get(loaded[part]), params[part])
    known = {part: array for part, array in params["head"].items() if part in kept}
    if known:
        assert_same_bits(jax.device_get({part: loaded["head"][part] for part in known}), known)
    elif kept:
        np.testing.assert_array_equal(loaded["head"]["pooler"], np.arange(24 * 24).reshape(24, 24).T)
    for leaf, place in names(wanted).items():
        assert leaf not in names(loaded) or names(loaded)[leaf].sharding == place.sharding
    fresh = jax.tree.map(lambda spec: jnp.full(spec.shape, 9.0), models.build(cfg).specs)
    state = step.with_params(step.TrainState(jnp.zeros(()), fresh, None), jax.device_get(loaded))
    untouched = {leaf for leaf, w in names(state.params).items() if (np.asarray(w) == 9).all()}
    assert untouched == {leaf for leaf in names(fresh) if leaf.startswith("head/") and leaf.split("/")[1] not in kept}


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (lambda tensors: None, {"d_ff": 32}, r"differs in\n  model.d_ff: 28 there, 32 here$"),
        (lambda tensors: tensors.update(odd=np.ones(2)), {}, r"has, and the model does not, odd$"),
        (lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.bias"), {}, r"lacks bert.encoder.layer.1.out"),
    ],
)
def test_what_is_below_the_head_must_be_the_same(tmp_path, change, fields, message):
    export(BERT, tmp_path)
    edit(tmp_path, change)
    with pytest.raises(hf.HuggingFaceError, match=message):
        hf.load_params(tmp_path, dataclasses.replace(CLASSIFIER, **fields), None, new_head=True)


def test_a_model_without_the_head_cannot_be_scored(tmp_path):
    export(BARE, tmp_path)
    with pytest.raises(hf.HuggingFaceError, match=r"holds a BertModel, whose head is not that of model.head='lm': tr"):
        hf.load_params(tmp_path, BERT, None)


def run_of(source) -> Config:
    return strict.from_dict(Config, config_source.load(source))


def test_a_folder_is_a_config_for_the_task_of_its_head(tmp_path):
    wanted = {"lm": (BERT, "masked_lm"), "bare": (BARE, "masked_lm"), "classes": (CLASSIFIER, "classification")}
    wanted |= {"tags": (TAGGER, "token_classification"), "answers": (READER, "question_answering")}
    wanted |= {"pairs": (PAIRS, "masked_lm_next_sentence")}
    for name, (model, objective) in (wanted | {"t5": (T5, "seq2seq")}).items():
        how = {"classes": ("sea", "sky", "air")} if model.num_classes else {}
        export(model, tmp_path / name, **how)
        cfg = run_of(f"hf:{tmp_path}/{name}")
        assert (cfg.train.objective, cfg.init_from) == (objective, f"hf:{tmp_path}/{name}")
        assert cfg.data.classes == how.get("classes", tuple(f"LABEL_{i}" for i in range(cfg.model.num_classes)))
        assert disagreements(cfg.model, dataclasses.replace(model, head="lm" if name == "bare" else model.head)) == []
    for name in ("bare", "lm"):
        cfg = strict.from_dict(Config, finetune_classification.get_config(f"hf:{tmp_path}/{name}"))
        assert (cfg.model.head, cfg.model.num_classes, cfg.model.d_model) == ("classification", 3, 24)
        assert cfg.data.tokenizer == f"hf:{tmp_path}/{name}/tokenizer.json"


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (BERT, {"pad_token_id": 256, "eos_token_id": None}),
        (T5, {"pad_token_id": 256, "eos_token_id": 258, "decoder_start_token_id": 256}),
    ],
)
def test_the_config_says_which_tokens_are_special(tmp_path, cfg, said):
    save_tokenizer(ByteTokenizer(), tmp_path)
    export(dataclasses.replace(cfg, vocab_size=260), tmp_path / "out", tokenizer_from=tmp_path)
    assert json.loads((tmp_path / "out/config.json").read_text()).items() >= said.items()


def test_bert_without_types_of_tokens_is_not_exported(tmp_path):
    with pytest.raises(
        hf.HuggingFaceError, match=r"BertForMaskedLM, differs in\n  model.token_types: 1 there, 0 here$"
    ):
        export(dataclasses.replace(BERT, token_types=0), tmp_path / "out")
