"""The decoder's logits and gradients equal those of transformers on PyTorch with the same random weights, in float32.

Tolerance of logits: 1e-4. Logits here are of size up to 5 or so, made in 2 or 3 layers from sums of at most 100 terms,
so float32 rounding (6e-8 relative, growing with the root of the number of sums) leaves about 1e-5.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

from bigjax import models  # noqa: E402
from bigjax.config import ModelConfig, MoeConfig, RopeConfig  # noqa: E402
from bigjax.models.parts import layers  # noqa: E402
from bigjax.params import names  # noqa: E402
from bigjax.tasks.losses import cross_entropy  # noqa: E402
from tests.parity import fused_jit, peers, quick_jit  # noqa: E402

LOGIT_TOLERANCE = 1e-4

GPT2 = {"vocab_size": 101, "num_layers": 2, "d_model": 36, "num_heads": 3, "max_seq_len": 40}
LLAMA = GPT2 | {
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 10,
    "d_ff": 52,
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": "none",
    "tie_embeddings": False,
}

GEMMA2 = LLAMA | {
    "num_layers": 4,
    "norm": "rmsnorm_unit_offset",
    "norm_placement": "sandwich",
    "activation": "geglu",
    "tie_embeddings": True,
    "scale_embeddings": True,
    "attn_scale": 7**-0.5,
    "attn_softcap": 0.7,
    "final_softcap": 1.5,
    "layer_windows": (4, 0),
}
MIXTRAL = LLAMA | {"moe": MoeConfig(num_experts=4, top_k=2)}


def rope(scaling: str, factor: float, **fields) -> dict:
    return LLAMA | {"rope": RopeConfig(scaling=scaling, factor=factor, **fields), "head_dim": 16}


CASES: dict[str, tuple[dict, tuple[int, int]]] = {
    "gpt2": (GPT2, (3, 17)),
    "gpt2 of one head, odd width, one token": (GPT2 | {"num_heads": 1, "d_model": 15, "d_ff": 7}, (1, 1)),
    "gpt2 with 5 heads over the whole table": (GPT2 | {"num_heads": 5, "d_model": 35, "num_layers": 3}, (5, 40)),
    "gpt2 with exact gelu": (GPT2 | {"activation": "gelu"}, (3, 17)),
    "gpt2 with squared relu": (GPT2 | {"activation": "relu_squared"}, (3, 17)),
    "gpt2 with an untied head": (GPT2 | {"tie_embeddings": False}, (3, 17)),
    "gpt2 with another epsilon": (GPT2 | {"norm_eps": 0.1}, (3, 17)),
    "llama": (LLAMA, (3, 17)),
    "llama with tied embeddings": (LLAMA | {"tie_embeddings": True}, (1, 33)),
    "llama with one kv head": (LLAMA | {"num_kv_heads": 1}, (5, 9)),
    "llama with a kv head per head": (LLAMA | {"num_kv_heads": 4}, (3, 17)),
    "llama with 6 heads in 3 groups": (LLAMA | {"num_heads": 6, "num_kv_heads": 3}, (3, 17)),
    "llama of odd vocabulary and width": (
        LLAMA | {"vocab_size": 7, "d_model": 21, "num_heads": 3, "num_kv_heads": 1, "d_ff": 13},
        (3, 31),
    ),
    "llama of another theta": (LLAMA | {"rope": RopeConfig(theta=500.0)}, (3, 17)),
    "llama of another epsilon": (LLAMA | {"norm_eps": 0.1}, (3, 17)),
    "mistral, window 5": (LLAMA | {"sliding_window": 5}, (3, 17)),
    "mistral, window 1": (LLAMA | {"sliding_window": 1}, (1, 9)),
    "mistral, window as long as the row": (LLAMA | {"sliding_window": 17}, (3, 17)),
    "qwen2, biases on queries, keys and values": (LLAMA | {"bias": "qkv"}, (3, 17)),
    "qwen3, normalised queries and keys": (LLAMA | {"qk_norm": True}, (3, 17)),
    "qwen2, full layers before those with a window": (
        LLAMA | {"bias": "qkv", "num_layers": 3, "layer_windows": (0, 5, 5)},
        (3, 17),
    ),
    "gemma2": (GEMMA2, (3, 17)),
    "gemma2 of one kv head, odd width, without caps": (
        GEMMA2 | {"num_heads": 3, "num_kv_heads": 1, "d_model": 21, "attn_softcap": None, "final_softcap": None},
        (5, 31),
    ),
    "gemma2, queries scaled by the head dim, one window": (
        GEMMA2 | {"attn_scale": None, "layer_windows": (), "sliding_window": 3},
        (1, 9),
    ),
    "mixtral": (MIXTRAL, (3, 17)),
    "mixtral, 3 of 5 experts": (LLAMA | {"moe": MoeConfig(num_experts=5, top_k=3)}, (3, 17)),
    "mixtral, one expert": (LLAMA | {"moe": MoeConfig(num_experts=3, top_k=1)}, (1, 9)),
    "llama3 rope, factor 8": (rope("llama3", 8.0, original_max_seq_len=64), (3, 37)),
    "llama3 rope, factor 32, other bands": (
        rope("llama3", 32.0, original_max_seq_len=40, low_freq_factor=0.5, high_freq_factor=3.0, theta=100.0),
        (3, 37),
    ),
    "yarn rope, factor 1": (rope("yarn", 1.0, original_max_seq_len=40), (3, 37)),
    "yarn rope, factor 4": (rope("yarn", 4.0, original_max_seq_len=64), (3, 37)),
    "yarn rope, factor 16, other bands": (
        rope("yarn", 16.0, original_max_seq_len=128, beta_fast=8.0, beta_slow=2.0, theta=50.0),
        (3, 37),
    ),
}


def tokens_of(cfg: ModelConfig, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, cfg.vocab_size, shape)


def our_logits(params: Any, tokens: np.ndarray, cfg: ModelConfig, jit=quick_jit, **inputs) -> np.ndarray:
    model = models.build(cfg)

    @jit
    def run(params, tokens, inputs):
        return model.family.logits(params, model.family.apply(params, tokens, cfg, **inputs)[0], cfg)

    return np.asarray(run(params, tokens, inputs))


def hf_logits(hf: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return hf(torch.from_numpy(tokens), use_cache=False).logits.numpy()


@pytest.mark.sample(16)
@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    fields, shape = CASES[case]
    cfg = ModelConfig(**fields)
    tokens, hf = tokens_of(cfg, shape), peers.build(cfg)
    params = peers.weights(hf, cfg)
    declared = {name: spec.shape for name, spec in names(models.build(cfg).specs).items()}
    assert {name: w.shape for name, w in names(params).items()} == declared
    expected = hf_logits(hf, tokens)
    assert expected.std() > 0.3  # logits that say something
    np.testing.assert_allclose(our_logits(params, tokens, cfg), expected, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "gelu"},
        {"norm_eps": 1e-2},
        {"sliding_window": 16},
        {"num_kv_heads": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices_every_small_change(change):
    """Each option moves logits by far more than the tolerance: agreement above is no accident."""
    cfg = ModelConfig(**GPT2)
    tokens, params = tokens_of(cfg, (3, 17)), peers.weights(peers.build(cfg), cfg)
    other = ModelConfig(**GPT2 | change)
    changed = jax.tree.map(lambda w: w, params)
    if other.num_kv_heads != cfg.num_kv_heads:
        for name in ("k", "v", "k_bias", "v_bias"):
            changed["blocks"]["attn"][name] = params["blocks"]["attn"][name][..., :1, :]
    moved = np.abs(our_logits(changed, tokens, other) - our_logits(params, tokens, cfg)).max()
    assert moved > 10 * LOGIT_TOLERANCE


def test_a_norm_with_a_unit_offset_adds_the_one_in_float32():
    """In bfloat16, 1 + scale is off by up to 2**-9; as it is, only the result is rounded."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    rng = np.random.default_rng(0)
    x, scale = (rng.standard_normal(shape).astype(jnp.bfloat16) for shape in ((40, 64), (64,)))
    norm = Gemma2RMSNorm(64, eps=1e-6).bfloat16()
    norm.weight.data = torch.from_numpy(scale.astype(np.float32)).bfloat16()
    with torch.no_grad():
        expected = norm(torch.from_numpy(x.astype(np.float32)).bfloat16()).float().numpy()
    ours = layers.rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-6, unit_offset=True)
    assert ours.dtype == jnp.bfloat16
    # Where float32 differs in its last bit, one in a few thousand results is rounded to the other neighbour.
    assert np.mean(np.asarray(ours, np.float32) != expected) < 0.005
    np.testing.assert_allclose(np.asarray(ours, np.float32), expected, rtol=2**-7)


DOCUMENTS = ((5, 7, 1, 4), (17,), (2, 9))
"""Lengths of the documents of each packed row of 17; the last row ends in padding."""


@pytest.mark.parametrize(
    "fields",
    [GPT2, LLAMA, LLAMA | {"sliding_window": 3}, GEMMA2],
    ids=["gpt2", "llama", "mistral", "gemma2"],
)
def test_packed_documents_equal_each_document_alone(fields):
    cfg = ModelConfig(**fields)
    hf = peers.build(cfg)
    tokens = tokens_of(cfg, (len(DOCUMENTS), 17))
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    pieces = []
    for row, lengths in enumerate(DOCUMENTS):
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        for number, (start, length) in enumerate(zip(starts, lengths, strict=True), start=1):
            segments[row, start : start + length] = number
            positions[row, start : start + length] = np.arange(length)
            pieces.append((row, slice(start, start + length)))
    params = peers.weights(hf, cfg)
    ours = our_logits(params, tokens, cfg, segments_BS=segments, positions_BS=positions)
    assert np.isfinite(ours).all()
    for row, span in pieces:
        alone = hf_logits(hf, tokens[row : row + 1, span])[0]
        np.testing.assert_allclose(ours[row, span], alone, rtol=0, atol=LOGIT_TOLERANCE)


@pytest.fixture(scope="module")
def gemma2() -> tuple[Any, np.ndarray, Any]:
    """Random weights of a small Gemma 2, its logits of some tokens, and its gradients, by name."""
    cfg = ModelConfig(**GEMMA2)
    params = peers.weights(peers.build(cfg), cfg)
    logits = our_logits(params, tokens_of(cfg, (3, 17)), cfg, fused_jit)
    return params, logits, names(our_gradients(params, tokens_of(cfg, (2, 18)), cfg)[1])


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "change",
    [
        {"norm": "rmsnorm"},
        {"scale_embeddings": False},
        {"activation": "swiglu"},
        {"attn_softcap": None},
        {"final_softcap": None},
        {"attn_scale": None},
        {"layer_windows": (0, 4)},
        {"layer_windows": (), "sliding_window": 4},
        {"layer_windows": (4, 0, 4, 0)},
    ],
    ids=str,
)
def test_every_option_of_gemma2_matters(gemma2, change):
    """The last change is none: the same windows written out."""
    params, logits, _ = gemma2
    cfg = ModelConfig(**GEMMA2 | change)
    moved = np.abs(our_logits(params, tokens_of(cfg, (3, 17)), cfg, fused_jit) - logits).max()
    assert moved == 0 if change == {"layer_windows": (4, 0, 4, 0)} else moved > 10 * LOGIT_TOLERANCE


@pytest.mark.parametrize(
    "how",
    [
        {"layers": "unroll"},
        {"remat": "full"},
        {"remat": "dots", "layers": "unroll"},
        {"attention": "blocked"},
        {"layer_windows": (4, 0, 4, 0)},
    ],
    ids=str,
)
def test_gemma2_has_the_same_gradients_however_it_runs(gemma2, how):
    params, _, expected = gemma2
    cfg = ModelConfig(**GEMMA2 | how)
    actual = names(our_gradients(params, tokens_of(cfg, (2, 18)), cfg)[1])
    for name, grad in expected.items():
        tolerance = 1e-5 * np.abs(grad).max() + 1e-7
        np.testing.assert_allclose(actual[name], grad, rtol=0, atol=tolerance, err_msg=name)


def our_gradients(params: Any, tokens: np.ndarray, cfg: ModelConfig) -> tuple[Any, Any]:
    """Return the mean loss of predicting each next token, and its gradient."""
    model = models.build(cfg)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def loss(params):
        out = model.family.logits(params, model.family.apply(params, inputs, cfg)[0], cfg)
        sums = cross_entropy(out, targets, jnp.ones(targets.shape))
        return sums.total / sums.weight

    return quick_jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "fields",
    [GPT2, LLAMA, LLAMA | {"qk_norm": True, "tie_embeddings": True}, GEMMA2, MIXTRAL],
    ids=["gpt2", "llama", "qwen3", "gemma2", "mixtral"],
)
def test_gradients_of_all_parameters(fields):
    """Both sides differentiate the same mean loss; a gradient may differ by 1e-5 of the largest in its parameter.

    The floor of 1e-7 is for parameters without effect, such as the bias of the keys, which softmax cancels.
    """
    cfg = ModelConfig(**fields)
    model, hf = models.build(cfg), peers.build(cfg)
    tokens = tokens_of(cfg, (3, 18))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = hf(torch.from_numpy(inputs), use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, cfg.vocab_size), torch.from_numpy(targets).reshape(-1))
    loss.backward()

    value, grads = our_gradients(peers.weights(hf, cfg), tokens, cfg)
    assert abs(float(value) - loss.item()) < 1e-5
    expected = names(peers.gradients(hf, cfg))
    assert set(expected) == set(names(model.specs))
    for name, grad in names(grads).items():
        tolerance = 1e-5 * np.abs(expected[name]).max() + 1e-7
        np.testing.assert_allclose(grad, expected[name], rtol=0, atol=tolerance, err_msg=name)
