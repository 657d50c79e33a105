"""BERT (Devlin et al. 2019) at Hugging Face: with the heads of pre-training, together or one of them, with one for
classes of texts, of words or of places in a text, or without any.

A bare `BertModel` has a pooler, which classification goes on from.
"""

from typing import Any

from bigjax.config import ModelConfig
from bigjax.data.rows.labelled import numbered
from bigjax.interop.hf.architecture import (
    Architecture,
    HuggingFaceError,
    Settings,
    read_activation,
    read_dropout,
    write_activation,
)
from bigjax.interop.hf.labels import LABELS, read_labels, write_labels

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")

EMBEDDINGS, LAYER, HEAD = "bert.embeddings", "bert.encoder.layer.{layers}", "cls.predictions"
TENSORS = {
    "embed/tokens": f"{EMBEDDINGS}.word_embeddings.weight",
    "embed/positions": f"{EMBEDDINGS}.position_embeddings.weight",
    "embed/types": f"{EMBEDDINGS}.token_type_embeddings.weight",
}
for ours, theirs in (
    ("embed/norm", f"{EMBEDDINGS}.LayerNorm"),
    ("blocks/attn_norm", f"{LAYER}.attention.output.LayerNorm"),
    ("blocks/mlp_norm", f"{LAYER}.output.LayerNorm"),
):
    TENSORS |= {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}
for ours, theirs in (
    ("blocks/attn/q", "attention.self.query"),
    ("blocks/attn/k", "attention.self.key"),
    ("blocks/attn/v", "attention.self.value"),
    ("blocks/attn/o", "attention.output.dense"),
    ("blocks/mlp/up", "intermediate.dense"),
    ("blocks/mlp/down", "output.dense"),
):
    TENSORS |= {ours: f"{LAYER}.{theirs}.weight", f"{ours}_bias": f"{LAYER}.{theirs}.bias"}
MASKED = {
    "head/dense": f"{HEAD}.transform.dense.weight",
    "head/dense_bias": f"{HEAD}.transform.dense.bias",
    "head/norm/scale": f"{HEAD}.transform.LayerNorm.weight",
    "head/norm/bias": f"{HEAD}.transform.LayerNorm.bias",
    "head/bias": f"{HEAD}.bias",
}
POOLER = {"head/pooler": "bert.pooler.dense.weight", "head/pooler_bias": "bert.pooler.dense.bias"}
CLASSES = {"head/classes": "classifier.weight", "head/classes_bias": "classifier.bias"}
ENDS = {"head/classes": "qa_outputs.weight", "head/classes_bias": "qa_outputs.bias"}
FOLLOWS = {"head/classes": "cls.seq_relationship.weight", "head/classes_bias": "cls.seq_relationship.bias"}

TYPES = "type_vocab_size"


def _read(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    del fields
    return {
        "activation": read_activation(settings, ACTIVATIONS, "hidden_act"),
        "dropout": read_dropout(settings, *DROPOUTS),
    }


def _write(cfg: ModelConfig) -> dict[str, Any]:
    # There is no BERT without types of tokens: one of none is not the same.
    types = {TYPES: max(cfg.token_types, 1)}
    return {"hidden_act": write_activation(cfg, ACTIVATIONS), **dict.fromkeys(DROPOUTS, cfg.dropout), **types}


def _read_classes(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    found = _read(settings, fields)
    single = {"problem_type": "single_label_classification"} if fields["head"] == "classification" else {}
    for key, covered in (single | {"classifier_dropout": found["dropout"]}).items():
        if (value := settings.take(key, covered)) != covered:
            raise settings.uncovered(key, value, [covered])
    count = len(read_labels(settings))
    if count < 2:
        raise HuggingFaceError(f"{settings.place}: {LABELS} has one label, a regression, which is not covered")
    return found | {"num_classes": count}


def _read_ends(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    if (count := len(read_labels(settings))) != 2:
        raise HuggingFaceError(f"{settings.place}: {LABELS} has {count} labels, but an answer has 2 ends")
    return _read(settings, fields)


def _write_classes(cfg: ModelConfig) -> dict[str, Any]:
    return _write(cfg) | write_labels(numbered(cfg.num_classes))


def _write_class(cfg: ModelConfig) -> dict[str, Any]:
    return _write_classes(cfg) | {"problem_type": "single_label_classification"}


def _architecture(class_name: str, head: str, tensors: dict[str, str], **others: Any) -> Architecture:
    return Architecture(
        model_type="bert",
        class_name=class_name,
        tensors=tensors,
        fields={
            "vocab_size": ("vocab_size", 30522),
            "num_layers": ("num_hidden_layers", 12),
            "d_model": ("hidden_size", 768),
            "num_heads": ("num_attention_heads", 12),
            "d_ff": ("intermediate_size", 3072),
            "max_seq_len": ("max_position_embeddings", 512),
            "token_types": (TYPES, 2),
            "norm_eps": ("layer_norm_eps", 1e-12),
            "init_std": ("initializer_range", 0.02),
        },
        fixed={"family": "encoder", "positions": "learned", "norm_placement": "post", "bias": "all", "head": head},
        required={
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        **{"read": _read, "write": _write, "prefix": "bert."} | others,
        copies={f"{HEAD}.decoder.weight": "embed/tokens", f"{HEAD}.decoder.bias": "head/bias"},
        renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        unused=r"(bert\.)?embeddings\.position_ids|bert\.pooler\.dense\.(weight|bias)|cls\.seq_relationship\..*",
    )


MASKED_LM = _architecture("BertForMaskedLM", "lm", TENSORS | MASKED)
PRETRAINING = _architecture("BertForPreTraining", "lm_next_sentence", TENSORS | MASKED | POOLER | FOLLOWS)
NEXT_SENTENCE = _architecture("BertForNextSentencePrediction", "next_sentence", TENSORS | POOLER | FOLLOWS)
CLASSIFICATION = _architecture(
    "BertForSequenceClassification",
    "classification",
    TENSORS | POOLER | CLASSES,
    read=_read_classes,
    write=_write_class,
)
TOKENS = _architecture(
    "BertForTokenClassification",
    "token_classification",
    TENSORS | CLASSES,
    read=_read_classes,
    write=_write_classes,
)
ANSWERS = _architecture("BertForQuestionAnswering", "question_answering", TENSORS | ENDS, read=_read_ends)
BARE = _architecture(
    "BertModel",
    "pooler",
    {ours: theirs.removeprefix("bert.") for ours, theirs in (TENSORS | POOLER).items()},
    prefix="",
)
BERT = (MASKED_LM, PRETRAINING, NEXT_SENTENCE, CLASSIFICATION, TOKENS, ANSWERS, BARE)
