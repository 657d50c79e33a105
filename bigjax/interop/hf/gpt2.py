"""GPT-2 (Radford et al. 2019) at Hugging Face: projections stored (in, out), queries, keys and values in one tensor."""

from typing import Any

from bigjax.config import ModelConfig
from bigjax.interop.hf.architecture import (
    Architecture,
    Fused,
    Settings,
    read_activation,
    read_dropout,
    write_activation,
)

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")

BLOCK = "transformer.h.{layers}"
TENSORS: dict[str, str | Fused] = {
    "embed/tokens": "transformer.wte.weight",
    "embed/positions": "transformer.wpe.weight",
    "blocks/attn/o": f"{BLOCK}.attn.c_proj.weight",
    "blocks/attn/o_bias": f"{BLOCK}.attn.c_proj.bias",
    "blocks/mlp/up": f"{BLOCK}.mlp.c_fc.weight",
    "blocks/mlp/up_bias": f"{BLOCK}.mlp.c_fc.bias",
    "blocks/mlp/down": f"{BLOCK}.mlp.c_proj.weight",
    "blocks/mlp/down_bias": f"{BLOCK}.mlp.c_proj.bias",
    "head/tokens": "lm_head.weight",
}
for part, name in enumerate("qkv"):
    TENSORS[f"blocks/attn/{name}"] = Fused(f"{BLOCK}.attn.c_attn.weight", part, 3)
    TENSORS[f"blocks/attn/{name}_bias"] = Fused(f"{BLOCK}.attn.c_attn.bias", part, 3)
for ours, theirs in (
    ("blocks/attn_norm", f"{BLOCK}.ln_1"),
    ("blocks/mlp_norm", f"{BLOCK}.ln_2"),
    ("final_norm", "transformer.ln_f"),
):
    TENSORS |= {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _read(settings: Settings, fields: dict[str, Any]) -> dict[str, Any]:
    activation = read_activation(settings, ACTIVATIONS, "activation_function")
    return {"activation": activation, "dropout": read_dropout(settings, *DROPOUTS)}


def _write(cfg: ModelConfig) -> dict[str, Any]:
    return {"activation_function": write_activation(cfg, ACTIVATIONS), **dict.fromkeys(DROPOUTS, cfg.dropout)}


GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    tensors=TENSORS,
    fields={
        "vocab_size": ("vocab_size", 50257),
        "num_layers": ("n_layer", 12),
        "d_model": ("n_embd", 768),
        "num_heads": ("n_head", 12),
        "d_ff": ("n_inner", 0),
        "max_seq_len": ("n_positions", 1024),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tie_embeddings": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
    },
    fixed={"positions": "learned", "norm": "layernorm", "bias": "all"},
    required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    read=_read,
    write=_write,
    transposed=False,
    prefix="transformer.",
    unused=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
)
