"""Mixtral at Hugging Face: Llama's layout with experts in the place of the MLP.

A folder holds each expert's matrices by themselves; transformers joins them when it loads it.

Its `load_balancing_loss_func` weighs one loss, of the shares and gates of all layers together, where we add those of
the layers. Near balance, where each layer's is that of all, ours is as many times theirs as there are layers, which the
coefficient is divided by. What differs is of the second order in how far shares and gates are from even.
"""

from typing import Any

from bigjax.config import ModelConfig
from bigjax.interop.hf.architecture import (
    GATED_ACTIVATIONS,
    Architecture,
    Settings,
    one_window,
    read_activation,
    read_rope,
    write_activation,
    write_rope,
)
from bigjax.interop.hf.llama import FIELDS, FIXED, LAYER, TENSORS

SPARSE = f"{LAYER}.block_sparse_moe"
EXPERT = f"{SPARSE}.experts.{{experts}}"
NUM_EXPERTS, PER_TOKEN, AUX_LOSS, JITTER = (
    "num_local_experts",
    "num_experts_per_tok",
    "router_aux_loss_coef",
    "router_jitter_noise",
)


def _read(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "activation": read_activation(settings, GATED_ACTIVATIONS, "hidden_act"),
        "rope": read_rope(settings, fields["max_seq_len"], 1_000_000.0),
        "sliding_window": settings.take("sliding_window"),
        "moe": {
            "num_experts": settings.take(NUM_EXPERTS, 8),
            "top_k": settings.take(PER_TOKEN, 2),
            "aux_loss": _rounded(settings.take(AUX_LOSS, 0.001) / max(fields["num_layers"], 1)),
            "jitter": settings.take(JITTER, 0.0),
        },
    }


def _write(cfg: ModelConfig) -> dict[str, Any]:
    # A dense model is another architecture: whatever stands here, it is not the same.
    moe = {NUM_EXPERTS: cfg.moe.num_experts or 1, PER_TOKEN: cfg.moe.experts_per_token}
    moe |= {AUX_LOSS: _rounded(cfg.moe.aux_loss * cfg.num_layers)}
    moe |= {JITTER: cfg.moe.jitter, "sliding_window": one_window(cfg)}
    return {"hidden_act": write_activation(cfg, GATED_ACTIVATIONS), **write_rope(cfg.rope), **moe}


def _rounded(coefficient: float) -> float:
    """Return a coefficient that comes back from a division as it was."""
    return float(f"{coefficient:.12g}")


MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    tensors={name: tensor for name, tensor in TENSORS.items() if not name.startswith("blocks/mlp/")}
    | {
        "blocks/moe/router": f"{SPARSE}.gate.weight",
        "blocks/moe/gate": f"{EXPERT}.w1.weight",
        "blocks/moe/down": f"{EXPERT}.w2.weight",
        "blocks/moe/up": f"{EXPERT}.w3.weight",
    },
    fields=FIELDS
    | {
        "num_kv_heads": ("num_key_value_heads", 8),
        "d_ff": ("intermediate_size", 14336),
        "max_seq_len": ("max_position_embeddings", 131072),
        "norm_eps": ("rms_norm_eps", 1e-5),
    },
    fixed=FIXED,
    required={"attention_dropout": 0.0},
    read=_read,
    write=_write,
)
