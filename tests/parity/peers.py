"""Hugging Face's PyTorch models of a bigjax model config, with random weights, and those weights as bigjax's tree.

The library's own tables say which tensor is which parameter; that they are right is what equal logits prove.
"""

from typing import Any

import jax
import numpy as np
import torch
import transformers

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.interop.hf.config import export_config
from bigjax.interop.hf.tensors import tensors_of, to_params
from bigjax.params import names

TEXT = "the cat sat on the mat and the other cat sat there; whatever the weather, they gather. " * 3
"""What small tokenizers are trained on."""

LLAMA = ModelConfig(
    vocab_size=300,
    num_layers=1,
    d_model=32,
    num_heads=4,
    positions="rotary",
    norm="rmsnorm",
    activation="swiglu",
    bias="none",
    tie_embeddings=False,
)


def config(cfg: ModelConfig) -> Any:
    """Return transformers' config of the model."""
    _, values = export_config(cfg)
    # A padding token's embedding would get no gradient.
    values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return transformers.AutoConfig.for_model(**values)


def build(cfg: ModelConfig, seed: int = 0) -> Any:
    """Return the model of `cfg` in float32 with every parameter, also biases and norms, drawn at random.

    Matrices are drawn with standard deviation 1 / sqrt(fan in) or so, which makes attention far from uniform.
    """
    hf_cfg = config(cfg)
    hf_cfg._attn_implementation = "eager"
    model = getattr(transformers, export_config(cfg)[0].class_name)(hf_cfg).float().eval()
    if cfg.family == "encdec" and not cfg.tie_embeddings:
        # transformers 5 ties every new T5; a checkpoint with another matrix unties it.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    generator = torch.Generator().manual_seed(seed)
    centre = 0.0 if cfg.norm == "rmsnorm_unit_offset" else 1.0
    with torch.no_grad():
        for name, w in model.named_parameters():
            noise = torch.randn(w.shape, generator=generator)
            if w.ndim > 1:
                w.copy_(noise * (0.3 if "wpe" in name or "wte" in name or "embed" in name else cfg.d_model**-0.5))
            else:
                w.copy_(0.2 * noise + (0.0 if name.endswith("bias") else centre))
    return model


def weights(model: Any, cfg: ModelConfig) -> Any:
    """Return the model's parameters as bigjax's tree of float32 arrays."""
    return _convert({name: w.detach() for name, w in model.named_parameters()}, model, cfg)


def gradients(model: Any, cfg: ModelConfig) -> Any:
    """Return the gradients left by `backward` as bigjax's tree of float32 arrays."""
    return _convert({name: w.grad for name, w in model.named_parameters()}, model, cfg)


def _as_stored(state: dict[str, Any]) -> dict[str, Any]:
    """Return tensors under the names that a folder has: transformers joins the experts of Mixtral in memory."""
    stored = {}
    for name, tensor in state.items():
        layer, _, joined = name.partition(".mlp.")
        if joined == "gate.weight":
            stored[f"{layer}.block_sparse_moe.gate.weight"] = tensor
        elif joined.startswith("experts."):
            parts = zip(("w1", "w3"), tensor.chunk(2, dim=1), strict=True) if "up" in joined else [("w2", tensor)]
            for short, part in parts:
                for i, one in enumerate(part):
                    stored[f"{layer}.block_sparse_moe.experts.{i}.{short}.weight"] = one
        else:
            stored[name] = tensor
    return stored


def _convert(state: dict[str, Any], model: Any, cfg: ModelConfig) -> Any:
    state = _as_stored(state)
    specs = models.build(cfg).specs
    tensors = tensors_of(export_config(cfg)[0], specs)
    dtypes = dict.fromkeys(names(specs), np.dtype(np.float32))
    arrays = ((name, state[name].numpy().copy()) for name in tensors)
    return jax.tree.unflatten(jax.tree.structure(specs), list(to_params(tensors, specs, arrays, dtypes).values()))
