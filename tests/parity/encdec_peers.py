"""PyTorch's encoder-decoders of a bigjax config, with random weights, and those weights as bigjax's tree."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.params import names


class Transformer(torch.nn.Module):
    """`torch.nn.Transformer` between a shared table with sinusoids (Vaswani et al. 2017, section 3.5) and logits."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        shape = {
            "d_model": cfg.d_model,
            "nhead": cfg.num_heads,
            "dim_feedforward": cfg.d_ff,
            "dropout": 0.0,
            "batch_first": True,
            "norm_first": cfg.norm_placement == "pre",
            "layer_norm_eps": cfg.norm_eps,
        }
        nn, last = torch.nn, torch.nn.LayerNorm(cfg.d_model, cfg.norm_eps)
        # With the norm after each half, as in the paper, nothing is left to normalise at the end.
        ends = (last, nn.LayerNorm(cfg.d_model, cfg.norm_eps)) if shape["norm_first"] else (None, None)
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**shape), cfg.num_layers, ends[0], False)
        decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape), cfg.num_decoder_layers, ends[1])
        shape |= {"custom_encoder": encoder, "custom_decoder": decoder}
        self.transformer = nn.Transformer(**shape)
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.scale = cfg.d_model**0.5

    def waves(self, length: int) -> torch.Tensor:
        out = torch.zeros(length, self.embed.embedding_dim)
        for position in range(length):
            for i in range(0, out.shape[1], 2):
                angle = position / 10_000 ** (i / out.shape[1])
                out[position, i], out[position, i + 1] = np.sin(angle), np.cos(angle)
        return out

    def forward(self, tokens: torch.Tensor, inputs: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        source, target = (self.embed(ids) * self.scale + self.waves(ids.shape[1]) for ids in (tokens, inputs))
        causal = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).triu(1)
        masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding}
        out = self.transformer(source, target, tgt_mask=causal, **masks)
        return out @ self.embed.weight.T


class T5(torch.nn.Module):
    """transformers' T5 with the arguments of `Transformer`."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.t5 = transformers.T5ForConditionalGeneration(t5_config(cfg))
        if (
            not cfg.tie_embeddings
        ):  # a new model's is always tied in transformers 5; a checkpoint that has its own unties it
            self.t5.lm_head.weight = torch.nn.Parameter(self.t5.lm_head.weight.detach().clone())

    def forward(self, tokens: torch.Tensor, inputs: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        mask = (~padding).long()
        return self.t5(input_ids=tokens, attention_mask=mask, decoder_input_ids=inputs, use_cache=False).logits


def t5_config(cfg: ModelConfig) -> Any:
    """Return transformers' config of the model."""
    config: Any = transformers.T5Config(
        vocab_size=cfg.vocab_size,
        d_model=cfg.d_model,
        d_kv=cfg.head_dim,
        d_ff=cfg.d_ff,
        num_layers=cfg.num_layers,
        num_decoder_layers=cfg.num_decoder_layers,
        num_heads=cfg.num_heads,
        relative_attention_num_buckets=cfg.own.relative_buckets,
        relative_attention_max_distance=cfg.own.relative_max_distance,
        dropout_rate=0.0,
        layer_norm_epsilon=cfg.norm_eps,
        feed_forward_proj="gated-gelu" if cfg.activation == "geglu" else cfg.activation,
        decoder_start_token_id=0,
    )
    config.scale_decoder_outputs = cfg.own.scale_logits
    return config


def build(cfg: ModelConfig, seed: int = 0) -> Any:
    """Return the peer of `cfg` in float32 with every parameter, also biases and norms, drawn at random."""
    model = (T5(cfg) if cfg.positions == "relative" else Transformer(cfg)).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, w in model.named_parameters():
            noise = torch.randn(w.shape, generator=generator)
            if "relative" in name:
                w.copy_(noise)
            elif w.ndim > 1:
                # Unscaled scores need smaller queries and keys.
                small = w.shape[-1] ** -0.5 * (0.5 if cfg.positions == "relative" else 1.0)
                w.copy_(noise * (1.0 if "shared" in name else small))
            else:
                w.copy_(0.2 * noise + (0.0 if "bias" in name else 1.0))
            if cfg.bias == "mlp" and "attn" in name and "bias" in name:
                w.zero_()  # PyTorch's attention and MLPs have biases together or not at all
    return model


def weights(model: Any, cfg: ModelConfig, of: Callable[[Any], Any] = lambda w: w) -> Any:
    """Return the model's parameters, or what `of` takes from each, as bigjax's tree of float32 arrays."""
    state = {name: of(w).detach().numpy() for name, w in model.named_parameters()}
    specs = models.build(cfg).specs
    read = _t5 if cfg.positions == "relative" else _transformer
    found = [read(state, name, spec.shape, cfg).reshape(spec.shape) for name, spec in names(specs).items()]
    return jax.tree.unflatten(jax.tree.structure(specs), found)


def gradients(model: Any, cfg: ModelConfig) -> Any:
    """Return the gradients left by `backward` as bigjax's tree of float32 arrays."""
    return weights(model, cfg, lambda w: w.grad)


def _transformer(state: dict[str, np.ndarray], name: str, shape: tuple[int, ...], cfg: ModelConfig) -> np.ndarray:
    side, _, rest = name.partition("/")
    stack = f"transformer.{side}"
    if name == "embed/tokens":
        return state["embed.weight"]
    if rest.startswith("final_norm/"):
        return state[f"{stack}.norm.{'bias' if rest.endswith('bias') else 'weight'}"]
    _, half, leaf = rest.split("/")
    halves = ["attn", "cross", "mlp"] if side == "decoder" else ["attn", "mlp"]
    layers = []
    for index in range(shape[0]):
        layer = f"{stack}.layers.{index}"
        if half.endswith("_norm"):
            number = 1 + halves.index(half.removesuffix("_norm"))
            layers.append(state[f"{layer}.norm{number}.{'bias' if leaf == 'bias' else 'weight'}"])
        elif half == "mlp":
            linear = "linear1" if leaf.startswith("up") else "linear2"
            layers.append(state[f"{layer}.{linear}.{'bias' if leaf.endswith('bias') else 'weight'}"].T)
        else:
            layers.append(_attention(state, f"{layer}.{'self_attn' if half == 'attn' else 'multihead_attn'}", leaf))
    return np.stack(layers)


def _attention(state: dict[str, np.ndarray], where: str, leaf: str) -> np.ndarray:
    kind = "bias" if leaf.endswith("bias") else "weight"
    if leaf.startswith("o"):
        return state[f"{where}.out_proj.{kind}"].T
    return np.split(state[f"{where}.in_proj_{kind}"], 3)["qkv".index(leaf[0])].T


def _t5(state: dict[str, np.ndarray], name: str, shape: tuple[int, ...], cfg: ModelConfig) -> np.ndarray:
    side, _, rest = name.partition("/")
    if side in ("embed", "head"):
        return state["t5.shared.weight" if side == "embed" else "t5.lm_head.weight"]
    if rest == "final_norm/scale":
        return state[f"t5.{side}.final_layer_norm.weight"]
    if rest == "relative":
        return state[f"t5.{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    _, half, leaf = rest.split("/")
    halves = ["attn", "cross", "mlp"] if side == "decoder" else ["attn", "mlp"]
    number = halves.index(half.removesuffix("_norm"))
    gated = {"gate": "wi_0", "up": "wi_1", "down": "wo"}
    called = gated if cfg.activation == "geglu" else {"up": "wi", "down": "wo"}
    inner = {
        "attn": f"SelfAttention.{leaf}",
        "cross": f"EncDecAttention.{leaf}",
        "mlp": f"DenseReluDense.{called.get(leaf)}",
    }.get(half, "layer_norm")
    return np.stack([state[f"t5.{side}.block.{i}.layer.{number}.{inner}.weight"].T for i in range(shape[0])])
