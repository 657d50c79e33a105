"""Llama and what has its layout at Hugging Face: Mistral, Qwen2 and Qwen3.

Rotary positions pair feature i of a head with feature i + head_dim / 2 on both sides, so no rows are permuted.
"""

from typing import Any

from bigjax.config import ModelConfig
from bigjax.interop.hf.architecture import (
    FULL,
    GATED_ACTIVATIONS,
    SLIDING,
    Architecture,
    Settings,
    one_window,
    read_activation,
    read_layer_types,
    read_rope,
    write_activation,
    write_layer_types,
    write_rope,
)

LAYER = "model.layers.{layers}"
TENSORS = {
    "embed/tokens": "model.embed_tokens.weight",
    "blocks/attn_norm/scale": f"{LAYER}.input_layernorm.weight",
    "blocks/mlp_norm/scale": f"{LAYER}.post_attention_layernorm.weight",
    "final_norm/scale": "model.norm.weight",
    "head/tokens": "lm_head.weight",
    **{f"blocks/attn/{name}": f"{LAYER}.self_attn.{name}_proj.weight" for name in "qkvo"},
    **{f"blocks/mlp/{name}": f"{LAYER}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}
QKV_BIASES = {f"blocks/attn/{name}_bias": f"{LAYER}.self_attn.{name}_proj.bias" for name in "qkv"}
QK_NORMS = {f"blocks/attn/{name}_norm": f"{LAYER}.self_attn.{name}_norm.weight" for name in "qk"}
FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "num_layers": ("num_hidden_layers", 32),
    "d_model": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", 0),
    "head_dim": ("head_dim", 0),
    "d_ff": ("intermediate_size", 11008),
    "max_seq_len": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
    "init_std": ("initializer_range", 0.02),
}
FIXED = {"positions": "rotary", "norm": "rmsnorm", "bias": "none"}
QWEN_FIELDS: dict[str, tuple[str, Any]] = FIELDS | {
    "vocab_size": ("vocab_size", 151936),
    "num_kv_heads": ("num_key_value_heads", 32),
    "d_ff": ("intermediate_size", 22016),
    "max_seq_len": ("max_position_embeddings", 32768),
}


def _read(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "activation": read_activation(settings, GATED_ACTIVATIONS, "hidden_act"),
        "rope": read_rope(settings, fields["max_seq_len"]),
    }


def _write(cfg: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": write_activation(cfg, GATED_ACTIVATIONS), **write_rope(cfg.rope)}


def _read_mistral(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    return _read(settings, fields) | {"sliding_window": settings.optional("sliding_window", 4096)}


def _write_mistral(cfg: ModelConfig) -> dict[str, Any]:
    return _write(cfg) | {"sliding_window": one_window(cfg)}


def _read_qwen(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    window, first = settings.take("sliding_window", 4096), settings.take("max_window_layers", 28)
    count = fields["num_layers"]
    if not settings.take("use_sliding_window", False):
        window, first = None, count
    kinds = [SLIDING if i >= first else FULL for i in range(count)]
    return _read(settings, fields) | read_layer_types(settings, window, count, kinds)


def _write_qwen(cfg: ModelConfig) -> dict[str, Any]:
    window, kinds = one_window(cfg), write_layer_types(cfg)
    first = kinds.index(SLIDING) if SLIDING in kinds else cfg.num_layers
    windows = {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": first}
    return _write(cfg) | windows | {"layer_types": kinds}


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    tensors=TENSORS,
    fields=FIELDS,
    fixed=FIXED,
    required={"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0},
    read=_read,
    write=_write,
)
MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    tensors=TENSORS,
    fields=FIELDS
    | {
        "num_kv_heads": ("num_key_value_heads", 8),
        "d_ff": ("intermediate_size", 14336),
        "max_seq_len": ("max_position_embeddings", 131072),
    },
    fixed=FIXED,
    required={"attention_dropout": 0.0},
    read=_read_mistral,
    write=_write_mistral,
)
QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    tensors=TENSORS | QKV_BIASES,
    fields=QWEN_FIELDS,
    fixed=FIXED | {"bias": "qkv"},
    required={"attention_dropout": 0.0},
    read=_read_qwen,
    write=_write_qwen,
)
QWEN3 = Architecture(
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    tensors=TENSORS | QK_NORMS,
    fields=QWEN_FIELDS | {"head_dim": ("head_dim", 128)},
    fixed=FIXED | {"qk_norm": True},
    required={"attention_bias": False, "attention_dropout": 0.0},
    read=_read_qwen,
    write=_write_qwen,
)
