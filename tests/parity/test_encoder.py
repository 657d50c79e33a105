"""The encoder against BERT of transformers on PyTorch: logits and gradients with the same random weights; counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from bigjax import models, params
from bigjax.config import ModelConfig
from configs import bert

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

CFG = ModelConfig(
    family="encoder",
    vocab_size=97,
    num_layers=3,
    d_model=48,
    num_heads=4,
    d_ff=80,
    max_seq_len=40,
    token_types=2,
    norm_placement="post",
    norm_eps=1e-12,
    activation="gelu",
)
L, D, H, K = CFG.num_layers, CFG.d_model, CFG.num_heads, CFG.head_dim


@pytest.fixture(scope="module")
def peer():
    hf_cfg = transformers.BertConfig(
        vocab_size=CFG.vocab_size,
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=H,
        intermediate_size=CFG.d_ff,
        max_position_embeddings=CFG.max_seq_len,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    model = transformers.BertForMaskedLM(hf_cfg).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in model.parameters():
            w.copy_(0.2 * torch.randn(w.shape, generator=generator))
    return model


def ours(tensors: dict[str, np.ndarray]) -> dict:
    """Lay weights or gradients, by transformers' names, out as `encoder.specs` declares them."""

    def plain(name: str) -> dict:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def stacked(name: str, *shape: int) -> jax.Array:
        found = [tensors[f"bert.encoder.layer.{i}.{name}"] for i in range(L)]
        turned = [w.T if w.ndim == 2 else w for w in found]
        return jnp.stack([w.reshape(shape) if shape else w for w in turned])

    def norm(name: str) -> dict:
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    attn = {short: f"attention.self.{name}" for short, name in (("q", "query"), ("k", "key"), ("v", "value"))}
    embeddings, transform = "bert.embeddings", "cls.predictions.transform"
    return {
        "embed": {
            "tokens": tensors[f"{embeddings}.word_embeddings.weight"],
            "positions": tensors[f"{embeddings}.position_embeddings.weight"],
            "types": tensors[f"{embeddings}.token_type_embeddings.weight"],
            "norm": plain(f"{embeddings}.LayerNorm"),
        },
        "blocks": {
            "attn": {
                **{short: stacked(f"{name}.weight", D, H, K) for short, name in attn.items()},
                **{f"{short}_bias": stacked(f"{name}.bias", H, K) for short, name in attn.items()},
                "o": stacked("attention.output.dense.weight", H, K, D),
                "o_bias": stacked("attention.output.dense.bias"),
            },
            "attn_norm": norm("attention.output.LayerNorm"),
            "mlp": {
                "up": stacked("intermediate.dense.weight"),
                "up_bias": stacked("intermediate.dense.bias"),
                "down": stacked("output.dense.weight"),
                "down_bias": stacked("output.dense.bias"),
            },
            "mlp_norm": norm("output.LayerNorm"),
        },
        "head": {
            "dense": tensors[f"{transform}.dense.weight"].T,
            "dense_bias": tensors[f"{transform}.dense.bias"],
            "norm": plain(f"{transform}.LayerNorm"),
            "bias": tensors["cls.predictions.bias"],
        },
    }


@pytest.mark.parametrize("attention", ["reference", "xla"])
@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("shape", [(3, 31), (1, 7)])
def test_logits_and_gradients(peer, attention, layers, shape):
    cfg = dataclasses.replace(CFG, attention=attention, layers=layers)
    family, rng = models.build(cfg).family, np.random.default_rng(0)
    # Token 0 is padding to transformers: it gives its row no gradient from where it is read.
    tokens, types = rng.integers(1, CFG.vocab_size, shape), rng.integers(0, 2, shape)
    real = np.ones(shape, np.int32)
    real[0, 2 * shape[1] // 3 :] = 0
    everywhere = jnp.tile(jnp.arange(shape[1]), (shape[0], 1))

    def logits(tree):
        inputs = {"segments_BS": jnp.asarray(real), "types_BS": jnp.asarray(types)}
        x, _ = family.apply(tree, jnp.asarray(tokens), cfg, **inputs)
        return jnp.where(real[..., None] > 0, family.masked_logits(tree, x, everywhere, cfg), 0)

    peer.zero_grad()
    given = {"attention_mask": torch.tensor(real), "token_type_ids": torch.tensor(types)}
    wanted = peer(input_ids=torch.tensor(tokens), **given).logits * torch.tensor(real)[..., None]
    weights = ours({name: w.detach().numpy() for name, w in peer.named_parameters()})
    assert {n: s.shape for n, s in params.names(models.build(cfg).specs).items()} == {
        n: w.shape for n, w in params.names(weights).items()
    }
    found, pullback = jax.vjp(logits, jax.tree.map(jnp.asarray, weights))
    np.testing.assert_allclose(found, wanted.detach(), atol=1e-4)
    cotangent = rng.normal(size=found.shape).astype(np.float32)
    wanted.backward(torch.tensor(cotangent))
    gradients = {name: np.zeros(w.shape) if w.grad is None else w.grad.numpy() for name, w in peer.named_parameters()}
    (back,) = pullback(jnp.asarray(cotangent))
    for name, gradient in params.names(ours(gradients)).items():
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(params.names(back)[name], gradient, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("name", bert.ARGUMENTS)
def test_every_size_counts_as_transformers_do(name):
    vocab_size, num_layers, d_model, num_heads = bert.SHAPES[name]
    hf_cfg = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * d_model,
    )
    with torch.device("meta"):
        peers = transformers.BertForMaskedLM(hf_cfg), transformers.BertModel(hf_cfg)
    with_head, with_pooler = (sum(w.numel() for w in one.parameters()) for one in peers)
    specs = models.build(bert.model(*bert.SHAPES[name])).specs
    assert params.count(specs) == with_head
    # What classification keeps: all below the head, and a pooler.
    assert params.count(specs) - params.count(specs["head"]) + d_model * d_model + d_model == with_pooler
    if name == "base":
        assert with_pooler == 109_482_240
