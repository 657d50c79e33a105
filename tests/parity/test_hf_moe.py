"""Routers against those of transformers on PyTorch, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

from transformers import SwitchTransformersConfig  # noqa: E402
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # noqa: E402
from transformers.models.switch_transformers import modeling_switch_transformers as hf_switch  # noqa: E402

from bigjax.config import MoeConfig  # noqa: E402
from bigjax.models.moe import routing as moe_routing  # noqa: E402

B, S, D, E = 3, 24, 8, 4
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, S, D)).astype(np.float32)
ROUTER = RNG.normal(size=(D, E)).astype(np.float32)


def routed(cfg: MoeConfig, capacity: int | None) -> moe_routing.Routing:
    """Return the routing of each row, a group."""
    real = jnp.ones(S, bool)
    one = lambda logits: moe_routing.route(logits, real, None, cfg, capacity)  # noqa: E731
    return jax.vmap(one)(jnp.asarray(HIDDEN) @ ROUTER)


@pytest.mark.parametrize("capacity", [1, 4, S])
def test_switch_dispatches_what_transformers_does(capacity):
    router = hf_switch.SwitchTransformersTop1Router(
        SwitchTransformersConfig(hidden_size=D, num_experts=E, expert_capacity=capacity, router_jitter_noise=0.0)
    ).eval()
    with torch.no_grad():
        router.classifier.weight.copy_(torch.from_numpy(ROUTER.T.copy()))
        kept, probabilities, logits = router(torch.from_numpy(HIDDEN))
        aux_losses = [
            hf_switch.load_balancing_loss_func(row.softmax(-1)[None], row.argmax(-1)[None, :, None]) for row in logits
        ]
        z_loss = hf_switch.router_z_loss_func(logits)
    found = routed(MoeConfig(num_experts=E, router="switch"), capacity)
    ours = jax.nn.one_hot(found.experts[..., 0], E) * found.kept
    np.testing.assert_array_equal(ours, kept.numpy())
    np.testing.assert_allclose(found.weights, np.where(found.kept, probabilities.numpy(), 0), rtol=1e-5)
    np.testing.assert_allclose(found.aux_loss, torch.stack(aux_losses).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.z_loss.mean(), z_loss.item(), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_balancing_loss_of_mixtral(k):
    found = routed(MoeConfig(num_experts=E, top_k=k), None)
    for row, logits in enumerate(torch.from_numpy(HIDDEN @ ROUTER)):
        np.testing.assert_allclose(found.aux_loss[row], load_balancing_loss_func((logits,), E, k).item(), rtol=1e-5)
