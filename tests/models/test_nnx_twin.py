"""A twin of the decoder in Flax NNX, written on its own from the papers, gives the same logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.params import names
from tests.parity import quick_jit

LOGIT_TOLERANCE = 2e-5
"""Logits of size 5 in float32, from 2 layers of sums of some 50 terms: about 40 roundings of 3e-7."""


def rotate(x, theta: float):
    """Rotary positions (Su et al. 2021) as a product of complex numbers; the halves of a head are the parts."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None, None] / theta ** (jnp.arange(half) / half)
    turned = jax.lax.complex(x[..., :half], x[..., half:]) * jnp.exp(1j * angle)
    return jnp.concatenate([turned.real, turned.imag], axis=-1)


class Block(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, H, G, K = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        biased, projected = cfg.bias in ("all", "mlp"), cfg.bias in ("all", "qkv")
        self.cfg = cfg
        self.attn_norm, self.mlp_norm = norm(cfg, D, rngs), norm(cfg, D, rngs)
        self.q = nnx.LinearGeneral(D, (H, K), use_bias=projected, rngs=rngs)
        self.k = nnx.LinearGeneral(D, (G, K), use_bias=projected, rngs=rngs)
        self.v = nnx.LinearGeneral(D, (G, K), use_bias=projected, rngs=rngs)
        self.o = nnx.LinearGeneral((H, K), D, axis=(-2, -1), use_bias=cfg.bias == "all", rngs=rngs)
        self.up = nnx.Linear(D, cfg.d_ff, use_bias=biased, rngs=rngs)
        self.down = nnx.Linear(cfg.d_ff, D, use_bias=biased, rngs=rngs)
        if cfg.activation == "swiglu":
            self.gate = nnx.Linear(D, cfg.d_ff, use_bias=False, rngs=rngs)
        if cfg.qk_norm:
            self.q_norm = nnx.RMSNorm(K, epsilon=cfg.norm_eps, rngs=rngs)
            self.k_norm = nnx.RMSNorm(K, epsilon=cfg.norm_eps, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attend(self.attn_norm(x), mask)
        h = self.mlp_norm(x)
        return x + self.down(self.activate(h))

    def activate(self, h):
        match self.cfg.activation:
            case "swiglu":
                return nnx.silu(self.gate(h)) * self.up(h)
            case "relu_squared":
                return nnx.relu(self.up(h)) ** 2
            case name:
                return nnx.gelu(self.up(h), approximate=name == "gelu_tanh")

    def attend(self, h, mask):
        cfg = self.cfg
        q, k, v = self.q(h), self.k(h), self.v(h)
        if cfg.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if cfg.positions == "rotary":
            q, k = rotate(q, cfg.rope.theta), rotate(k, cfg.rope.theta)
        k, v = (jnp.repeat(y, cfg.num_heads // cfg.num_kv_heads, axis=2) for y in (k, v))
        q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))
        scores = jnp.matmul(q, k.swapaxes(2, 3)) / cfg.head_dim**0.5
        if cfg.attn_softcap:
            scores = cfg.attn_softcap * nnx.tanh(scores / cfg.attn_softcap)
        mixed = jnp.matmul(nnx.softmax(jnp.where(mask[:, None], scores, -jnp.inf)), v)
        return self.o(mixed.swapaxes(1, 2))


class Twin(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.tokens = nnx.Embed(cfg.vocab_size, cfg.d_model, rngs=rngs)
        if cfg.positions == "learned":
            self.positions = nnx.Embed(cfg.max_seq_len, cfg.d_model, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, rngs) for _ in range(cfg.num_layers)])
        self.final_norm = norm(cfg, cfg.d_model, rngs)
        if not cfg.tie_embeddings:
            self.head = nnx.Embed(cfg.vocab_size, cfg.d_model, rngs=rngs)

    def __call__(self, tokens, segments):
        S = tokens.shape[1]
        x = self.tokens(tokens)
        if self.cfg.positions == "learned":
            x = x + self.positions(jnp.arange(S))
        distance = jnp.arange(S)[:, None] - jnp.arange(S)
        mask = (distance >= 0) & (distance < (self.cfg.sliding_window or S))
        mask = mask & (segments[:, :, None] == segments[:, None])
        for block in self.blocks:
            x = block(x, mask)
        logits = (self.tokens if self.cfg.tie_embeddings else self.head).attend(self.final_norm(x))
        cap = self.cfg.final_softcap
        return cap * nnx.tanh(logits / cap) if cap else logits


def norm(cfg: ModelConfig, size: int, rngs: nnx.Rngs) -> nnx.Module:
    if cfg.norm == "rmsnorm":
        return nnx.RMSNorm(size, epsilon=cfg.norm_eps, rngs=rngs)
    return nnx.LayerNorm(
        size, epsilon=cfg.norm_eps, use_bias=cfg.bias in ("all", "mlp"), use_fast_variance=False, rngs=rngs
    )


def as_ours(pure: dict, cfg: ModelConfig) -> dict:
    """Arrange the twin's parameters, or their gradients, in bigjax's tree."""

    def layer(p: dict) -> dict:
        attn = {name: p[name]["kernel"] for name in "qkvo"}
        attn |= {f"{name}_bias": p[name]["bias"] for name in "qkvo" if "bias" in p[name]}
        attn |= {name: p[name]["scale"] for name in ("q_norm", "k_norm") if name in p}
        mlp = {name: p[name]["kernel"] for name in ("up", "gate", "down") if name in p}
        mlp |= {f"{name}_bias": p[name]["bias"] for name in mlp if "bias" in p[name]}
        return {"attn_norm": p["attn_norm"], "attn": attn, "mlp_norm": p["mlp_norm"], "mlp": mlp}

    layers = [layer(pure["blocks"][i]) for i in range(cfg.num_layers)]
    tables = {name: pure[name]["embedding"] for name in ("tokens", "positions") if name in pure}
    blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    ours = {"embed": tables, "blocks": blocks, "final_norm": pure["final_norm"]}
    return ours if cfg.tie_embeddings else ours | {"head": {"tokens": pure["head"]["embedding"]}}


SIZES = {"vocab_size": 53, "num_layers": 2, "d_model": 24, "num_heads": 4, "max_seq_len": 16}
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": "none", "tie_embeddings": False}
CONFIGS = {
    "gpt2": SIZES,
    "gpt2 whose attention has no biases": SIZES | {"bias": "mlp"},
    "llama": SIZES | LLAMA | {"num_kv_heads": 2, "d_ff": 40},
    "window, softcaps, normalised queries, biases": SIZES
    | LLAMA
    | {
        "num_kv_heads": 1,
        "qk_norm": True,
        "sliding_window": 4,
        "attn_softcap": 2.0,
        "final_softcap": 5.0,
        "bias": "qkv",
    },
    "no positions, layer norm without bias, squared relu, wide heads": SIZES
    | {"positions": "none", "bias": "none", "activation": "relu_squared", "head_dim": 9},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_twin(name):
    cfg = ModelConfig(**CONFIGS[name])
    model, rng = models.build(cfg), np.random.default_rng(0)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Twin(cfg, nnx.Rngs(0))))
    # Norms and biases are not left at the ones and zeros they start from.
    drawn = lambda w: jnp.asarray(0.25 * rng.standard_normal(w.shape) + (0.5 if w.ndim == 1 else 0.0), jnp.float32)  # noqa: E731
    state = jax.tree.map(drawn, abstract)
    tokens = rng.integers(0, cfg.vocab_size, (3, 15))
    segments = np.array([[1] * 15, [1] * 4 + [2] * 11, [1] * 7 + [2] * 1 + [0] * 7])
    direction = rng.standard_normal((3, 15, cfg.vocab_size)).astype(np.float32)

    def twin_loss(state):
        logits = nnx.merge(graph, state)(tokens, segments)
        return jnp.mean(logits * direction), logits

    def our_loss(params):
        x, _ = model.family.apply(params, tokens, cfg, segments_BS=segments)
        logits = model.family.logits(params, x, cfg)
        return jnp.mean(logits * direction), logits

    expected_grads, expected = quick_jit(jax.grad(twin_loss, has_aux=True))(state)
    params = as_ours(nnx.to_pure_dict(state), cfg)
    assert {n: w.shape for n, w in names(params).items()} == {n: s.shape for n, s in names(model.specs).items()}
    grads, logits = quick_jit(jax.grad(our_loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LOGIT_TOLERANCE)
    for parameter, grad in names(as_ours(nnx.to_pure_dict(expected_grads), cfg)).items():
        tolerance = 1e-5 * np.abs(grad).max() + 1e-8  # as of logits; the floor is for keys' biases, without effect
        np.testing.assert_allclose(names(grads)[parameter], grad, rtol=0, atol=tolerance, err_msg=parameter)
