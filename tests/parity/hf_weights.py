"""Hugging Face's PyTorch models built from a bigjax model config, and their weights in bigjax's layout.

For tests only and apart from the library: it is written from transformers' own module names. A projection of a
Llama-like model is stored `(out, in)`, one of GPT-2 `(in, out)` with queries, keys and values side by side.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from bigjax.config import ModelConfig, RopeConfig

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu_squared": "relu2", "swiglu": "silu"}


def build(cfg: ModelConfig, seed: int = 0, **overrides: Any) -> torch.nn.Module:
    """Return the causal LM of `cfg` in float32 with every parameter, also biases and norms, drawn at random.

    Matrices are drawn with standard deviation 1 / sqrt(fan in) or so, which makes attention far from uniform.
    """
    hf_cfg = gpt2_config(cfg) if cfg.positions == "learned" else llama_config(cfg)
    for name, value in {"attn_implementation": "eager", **overrides}.items():
        setattr(hf_cfg, "_attn_implementation" if name == "attn_implementation" else name, value)
    model = transformers.AutoModelForCausalLM.from_config(hf_cfg).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, w in model.named_parameters():
            noise = torch.randn(w.shape, generator=generator)
            if w.ndim > 1:
                w.copy_(noise * (0.3 if "wpe" in name or "wte" in name or "embed" in name else cfg.d_model**-0.5))
            else:
                w.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
    return model


def gpt2_config(cfg: ModelConfig) -> Any:
    """Return the GPT2Config of a model with learned positions."""
    return transformers.GPT2Config(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.max_seq_len,
        n_embd=cfg.d_model,
        n_layer=cfg.num_layers,
        n_head=cfg.num_heads,
        n_inner=cfg.d_ff,
        activation_function=ACTIVATIONS[cfg.activation],
        layer_norm_epsilon=cfg.norm_eps,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=cfg.tie_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )


def llama_config(cfg: ModelConfig) -> Any:
    """Return the config of the family that has what `cfg` asks for: Llama, Mistral, Qwen2 or Qwen3."""
    common = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": ACTIVATIONS[cfg.activation],
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": rope_parameters(cfg.rope),
    }
    if cfg.qk_norm:
        return transformers.Qwen3Config(**common, attention_bias=False)
    if cfg.bias == "qkv":
        return transformers.Qwen2Config(**common)
    if cfg.sliding_window is not None:
        return transformers.MistralConfig(**common, sliding_window=cfg.sliding_window)
    return transformers.LlamaConfig(**common, attention_bias=False, mlp_bias=False)


def rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    """Return transformers' description of rotary positions."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.scaling == "none":
        return parameters
    parameters |= {"rope_type": rope.scaling, "factor": rope.factor}
    parameters["original_max_position_embeddings"] = rope.original_max_seq_len
    names = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_fast", "beta_slow")}[rope.scaling]
    return parameters | {name: getattr(rope, name) for name in names}


def weights(model: torch.nn.Module, cfg: ModelConfig) -> dict:
    """Return the model's parameters as bigjax's tree of float32 arrays."""
    return convert({name: w.detach().numpy().copy() for name, w in model.named_parameters()}, cfg)


def gradients(model: torch.nn.Module, cfg: ModelConfig) -> dict:
    """Return the gradients left by `backward` as bigjax's tree of float32 arrays."""
    found = {name: w.grad for name, w in model.named_parameters()}
    return convert({name: grad.numpy().copy() for name, grad in found.items() if grad is not None}, cfg)


def convert(state: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict:
    """Arrange arrays named as in transformers into bigjax's tree."""
    return _from_gpt2(state, cfg) if cfg.positions == "learned" else _from_llama(state, cfg)


def _stacked(cfg: ModelConfig, layer: Any) -> dict:
    layers = [layer(i) for i in range(cfg.num_layers)]
    return {
        group: {name: np.stack([one[group][name] for one in layers]) for name in layers[0][group]}
        for group in layers[0]
    }


def _from_gpt2(state: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict:
    D, H, K = cfg.d_model, cfg.num_heads, cfg.head_dim

    def norm(prefix: str) -> dict:
        return {"scale": state[f"{prefix}.weight"], "bias": state[f"{prefix}.bias"]}

    def layer(i: int) -> dict:
        h = f"transformer.h.{i}"
        q, k, v = (w.reshape(D, H, K) for w in np.split(state[f"{h}.attn.c_attn.weight"], 3, axis=1))
        q_bias, k_bias, v_bias = (b.reshape(H, K) for b in np.split(state[f"{h}.attn.c_attn.bias"], 3))
        attn = {"q": q, "k": k, "v": v, "q_bias": q_bias, "k_bias": k_bias, "v_bias": v_bias}
        attn |= {
            "o": state[f"{h}.attn.c_proj.weight"].reshape(H, K, D),
            "o_bias": state[f"{h}.attn.c_proj.bias"],
        }
        mlp = {"up": state[f"{h}.mlp.c_fc.weight"], "up_bias": state[f"{h}.mlp.c_fc.bias"]}
        mlp |= {"down": state[f"{h}.mlp.c_proj.weight"], "down_bias": state[f"{h}.mlp.c_proj.bias"]}
        return {"attn_norm": norm(f"{h}.ln_1"), "attn": attn, "mlp_norm": norm(f"{h}.ln_2"), "mlp": mlp}

    params = {
        "embed": {"tokens": state["transformer.wte.weight"], "positions": state["transformer.wpe.weight"]},
        "blocks": _stacked(cfg, layer),
        "final_norm": norm("transformer.ln_f"),
    }
    return params if cfg.tie_embeddings else params | {"head": {"tokens": state["lm_head.weight"]}}


def _from_llama(state: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict:
    D, H, G, K = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim

    def layer(i: int) -> dict:
        h = f"model.layers.{i}"
        attn = {"o": state[f"{h}.self_attn.o_proj.weight"].T.reshape(H, K, D)}
        for name, heads in (("q", H), ("k", G), ("v", G)):
            attn[name] = state[f"{h}.self_attn.{name}_proj.weight"].T.reshape(D, heads, K)
            if cfg.bias == "qkv":
                attn[f"{name}_bias"] = state[f"{h}.self_attn.{name}_proj.bias"].reshape(heads, K)
            if cfg.qk_norm and name != "v":
                attn[f"{name}_norm"] = state[f"{h}.self_attn.{name}_norm.weight"]
        return {
            "attn_norm": {"scale": state[f"{h}.input_layernorm.weight"]},
            "attn": attn,
            "mlp_norm": {"scale": state[f"{h}.post_attention_layernorm.weight"]},
            "mlp": {name: state[f"{h}.mlp.{name}_proj.weight"].T for name in ("up", "gate", "down")},
        }

    params = {
        "embed": {"tokens": state["model.embed_tokens.weight"]},
        "blocks": _stacked(cfg, layer),
        "final_norm": {"scale": state["model.norm.weight"]},
    }
    return params if cfg.tie_embeddings else params | {"head": {"tokens": state["lm_head.weight"]}}
