"""Gemma 2 (Gemma Team 2024) at Hugging Face.

Norms scale by one plus what is stored, and we store the same: adding the one while importing would not be exact in
bfloat16.
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
from bigjax.interop.hf.llama import FIELDS, LAYER, TENSORS

ACTIVATIONS = {name: GATED_ACTIVATIONS[name] for name in ("gelu_pytorch_tanh", "silu")}


def _read(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    count, window = fields["num_layers"], settings.optional("sliding_window", 4096)
    scalar = settings.take("query_pre_attn_scalar", 256)
    alternating = [FULL if i % 2 else SLIDING for i in range(count)]
    return {
        "activation": read_activation(settings, ACTIVATIONS, "hidden_activation", "hidden_act"),
        "rope": read_rope(settings, fields["max_seq_len"]),
        "attn_softcap": settings.optional("attn_logit_softcapping", 50.0),
        "final_softcap": settings.optional("final_logit_softcapping", 30.0),
        "attn_scale": None if scalar == fields["head_dim"] else scalar**-0.5,
        **read_layer_types(settings, window, count, alternating),
    }


def _write(cfg: ModelConfig) -> dict[str, Any]:
    activation = write_activation(cfg, ACTIVATIONS)
    return {
        "hidden_activation": activation,
        "hidden_act": activation,
        "query_pre_attn_scalar": cfg.head_dim if cfg.attn_scale is None else round(cfg.attn_scale**-2),
        "attn_logit_softcapping": cfg.attn_softcap,
        "final_logit_softcapping": cfg.final_softcap,
        "sliding_window": one_window(cfg),
        "layer_types": write_layer_types(cfg),
        **write_rope(cfg.rope),
    }


GEMMA2 = Architecture(
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    tensors=TENSORS
    | {
        "blocks/attn_post_norm/scale": f"{LAYER}.post_attention_layernorm.weight",
        "blocks/mlp_norm/scale": f"{LAYER}.pre_feedforward_layernorm.weight",
        "blocks/mlp_post_norm/scale": f"{LAYER}.post_feedforward_layernorm.weight",
    },
    fields=FIELDS
    | {
        "vocab_size": ("vocab_size", 256000),
        "num_layers": ("num_hidden_layers", 26),
        "d_model": ("hidden_size", 2304),
        "num_heads": ("num_attention_heads", 8),
        "num_kv_heads": ("num_key_value_heads", 4),
        "head_dim": ("head_dim", 256),
        "d_ff": ("intermediate_size", 9216),
        "max_seq_len": ("max_position_embeddings", 8192),
        "tie_embeddings": ("tie_word_embeddings", True),
    },
    fixed={
        "positions": "rotary",
        "norm": "rmsnorm_unit_offset",
        "norm_placement": "sandwich",
        "bias": "none",
        "scale_embeddings": True,
    },
    required={"attention_bias": False, "attention_dropout": 0.0, "use_bidirectional_attention": False},
    read=_read,
    write=_write,
)
