"""What tokens are drawn from against the logits processors of transformers."""

from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is transformers on PyTorch")
from transformers.generation import logits_process as peer  # noqa: E402

from bigjax.evaluate.sampling import warped  # noqa: E402

LOGITS = (3 * np.random.default_rng(0).normal(size=(20, 50))).astype(np.float32)
SETTINGS = list(product((0.7, 1.0, 2.5), (None, 1, 12), (None, 0.3, 0.95), (None, 0.02, 0.5)))


def test_the_same_tokens_are_left_out_as_by_transformers():
    """In its order: temperature, top-k, top-p, min-p. Kept logits are the same up to the division."""
    sizes = set()
    for temperature, top_k, top_p, min_p in SETTINGS:
        expected = peer.TemperatureLogitsWarper(temperature)(None, torch.tensor(LOGITS))
        for processor, value in (
            (peer.TopKLogitsWarper, top_k),
            (peer.TopPLogitsWarper, top_p),
            (peer.MinPLogitsWarper, min_p),
        ):
            expected = expected if value is None else processor(value)(None, expected)
        found = np.asarray(warped(LOGITS, temperature, top_k, top_p, min_p))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, err_msg=f"{temperature, top_k, top_p, min_p}")
        sizes |= set(np.isfinite(found).sum(axis=-1).tolist())
    assert {1, 12, 50} <= sizes and len(sizes) > 20  # the settings mean something
