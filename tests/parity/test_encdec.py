"""Encoder-decoders against PyTorch's: `torch.nn.Transformer` and transformers' T5 and T5 v1.1, in float32.

Tolerances as in `test_hf_decoder`: float32 rounding leaves about 1e-5 of logits of size 5 or so.
"""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs PyTorch")

from bigjax import models  # noqa: E402
from bigjax.config import ModelConfig  # noqa: E402
from bigjax.models.parts import positions as relative_positions  # noqa: E402
from bigjax.params import names  # noqa: E402
from bigjax.tasks.losses import cross_entropy  # noqa: E402
from tests.models_of import model_of  # noqa: E402
from tests.parity import encdec_peers, quick_jit  # noqa: E402

LOGIT_TOLERANCE = 1e-4

TRANSFORMER = {
    "family": "encdec",
    "vocab_size": 101,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "d_model": 36,
    "num_heads": 3,
    "d_ff": 50,
    "positions": "sinusoidal",
    "norm_placement": "post",
    "activation": "relu",
    "scale_embeddings": True,
}
T5 = {
    "family": "encdec",
    "vocab_size": 101,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "d_model": 36,
    "num_heads": 4,
    "head_dim": 10,
    "d_ff": 50,
    "positions": "relative",
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "activation": "relu",
    "bias": "none",
    "attn_scale": 1.0,
    "scale_logits": True,
}
V1_1 = T5 | {"activation": "geglu", "tie_embeddings": False, "scale_logits": False}

CASES: dict[str, tuple[dict, tuple[int, int, int]]] = {
    "transformer": (TRANSFORMER, (3, 17, 11)),
    "transformer of the paper": (TRANSFORMER | {"bias": "mlp"}, (3, 17, 11)),
    "transformer, pre-norm": (TRANSFORMER | {"norm_placement": "pre"}, (3, 17, 11)),
    "transformer of one head and token": (TRANSFORMER | {"num_heads": 1, "d_model": 14}, (1, 1, 1)),
    "transformer, more layers that read": (TRANSFORMER | {"num_layers": 3, "num_decoder_layers": 1}, (2, 7, 31)),
    "t5": (T5, (3, 17, 11)),
    "t5 of odd sizes": (T5 | {"vocab_size": 7, "num_heads": 3, "d_model": 21, "num_decoder_layers": 1}, (5, 9, 33)),
    "t5 over long distances": (T5 | {"relative_buckets": 8, "relative_max_distance": 20}, (2, 71, 65)),
    "t5, untied": (T5 | {"tie_embeddings": False, "scale_logits": False}, (1, 5, 3)),
    "t5 v1.1": (V1_1, (3, 17, 11)),
    "t5 v1.1 of one token": (V1_1 | {"num_heads": 1}, (1, 1, 1)),
}


def batch_of(cfg: ModelConfig, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return rows that are padded at the end, the first row not at all."""
    rows, source, target = shape
    rng = np.random.default_rng(0)
    lengths = np.array([source, *rng.integers(1, source + 1, rows - 1)])
    return {
        "tokens": rng.integers(0, cfg.vocab_size, (rows, source)),
        "inputs": rng.integers(0, cfg.vocab_size, (rows, target)),
        "targets": rng.integers(0, cfg.vocab_size, (rows, target)),
        "segments": (np.arange(source) < lengths[:, None]).astype(np.int32),
    }


def our_logits(params: Any, batch: dict[str, np.ndarray], cfg: ModelConfig) -> jax.Array:
    family = models.build(cfg).family
    rows = {"inputs_BT": batch["inputs"], "segments_BS": batch["segments"]}
    return family.logits(params, family.apply(params, batch["tokens"], cfg, **rows)[0], cfg)


def their_logits(peer: Any, batch: dict[str, np.ndarray]) -> Any:
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    return peer(tensors["tokens"], tensors["inputs"], tensors["segments"] == 0)


@pytest.mark.sample(5)
@pytest.mark.filterwarnings("ignore:.*nested tensor.*:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(case):
    """A gradient may differ by 1e-5 of the largest in its parameter.

    The floor, a few roundings of the largest of all, is for parameters without effect, such as the bias of the keys.
    """
    fields, shape = CASES[case]
    cfg = model_of(**fields)
    batch, peer = batch_of(cfg, shape), encdec_peers.build(cfg)
    theirs = their_logits(peer, batch)
    loss = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.from_numpy(batch["targets"]).flatten())
    loss.backward()
    expected = theirs.detach().numpy()
    assert expected.std() > 0.3  # logits that say something

    @quick_jit
    def run(params):
        def loss(params):
            out = our_logits(params, batch, cfg)
            sums = cross_entropy(out, batch["targets"], np.ones(batch["targets"].shape, np.float32))
            return sums.total / sums.weight, out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, actual), grads = run(encdec_peers.weights(peer, cfg))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=LOGIT_TOLERANCE)
    assert abs(float(value) - loss.item()) < 1e-5
    their_grads = names(encdec_peers.gradients(peer, cfg))
    assert set(their_grads) == set(names(models.build(cfg).specs))
    floor = 4 * np.finfo(np.float32).eps * max(np.abs(grad).max() for grad in their_grads.values())
    for name, grad in names(grads).items():
        tolerance = 1e-5 * np.abs(their_grads[name]).max() + floor
        np.testing.assert_allclose(grad, their_grads[name], rtol=0, atol=tolerance, err_msg=name)


@cache
def logits(plain: ModelConfig, cfg: ModelConfig) -> np.ndarray:
    """Return logits of `cfg`, with the weights of a peer of `plain`."""
    batch, params = batch_of(plain, (2, 40, 40)), encdec_peers.weights(encdec_peers.build(plain), plain)
    return np.asarray(quick_jit(lambda p: our_logits(p, batch, cfg))(params))


@pytest.mark.parametrize(
    "change",
    [{"scale_logits": False}, {"attn_scale": None}, {"activation": "gelu"}, {"relative_max_distance": 17}],
    ids=lambda change: next(iter(change)),
)
def test_the_comparison_notices_every_option_of_t5(change):
    """Each moves logits by far more than the tolerance: agreement above is no accident."""
    fields = T5 | {"num_layers": 1, "num_decoder_layers": 1}
    cfg = model_of(**fields)
    moved = np.abs(logits(cfg, model_of(**fields | change)) - logits(cfg, cfg)).max()
    assert moved > 10 * LOGIT_TOLERANCE


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("count", "longest"), [(32, 128), (8, 20), (6, 50), (32, 17), (64, 1000)])
def test_every_distance_is_in_the_bucket_of_transformers(count, longest, causal):
    from transformers.models.t5.modeling_t5 import T5Attention

    cfg = model_of(family="encdec", relative_buckets=count, relative_max_distance=longest)
    distances = torch.arange(-longest, longest + 1)
    how = {"bidirectional": not causal, "num_buckets": count, "max_distance": longest}
    expected = T5Attention._relative_position_bucket(distances, **how).numpy()
    np.testing.assert_array_equal(relative_positions.buckets(cfg, causal=causal), expected)
    beyond = T5Attention._relative_position_bucket(torch.tensor([-(10**6), 10**6]), **how).numpy()
    np.testing.assert_array_equal(expected[[0, -1]], beyond)


@cache
def gradients(plain: ModelConfig, cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Return gradients of `cfg` by name, at the weights of a peer of `plain`."""
    batch, params = batch_of(plain, (2, 9, 5)), encdec_peers.weights(encdec_peers.build(plain), plain)
    return names(quick_jit(jax.grad(lambda p: our_logits(p, batch, cfg).var()))(params))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "how", [{"layers": "unroll"}, {"remat": "full"}, {"remat": "dots", "layers": "unroll"}], ids=str
)
@pytest.mark.parametrize("fields", [TRANSFORMER, V1_1], ids=["transformer", "t5 v1.1"])
def test_gradients_are_the_same_however_it_runs(fields, how):
    plain = model_of(**fields)
    expected, actual = gradients(plain, plain), gradients(plain, model_of(**fields | how))
    for name, grad in expected.items():
        tolerance = 1e-5 * np.abs(grad).max() + 1e-7
        np.testing.assert_allclose(actual[name], grad, rtol=0, atol=tolerance, err_msg=name)
