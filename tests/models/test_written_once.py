"""What programs hold and write: gradients of gated activations on some TPUs, and the buffers of experts."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from bigjax import sharding
from bigjax.config import ModelConfig, MoeConfig
from bigjax.models.moe import layers as moe
from bigjax.models.parts import layers, target
from tests.conftest import mesh_of


def on(kind: str):
    """Trace for devices of one kind that are not here."""
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="tpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Explicit,), abstract_device=device))


def test_the_devices_of_a_program_are_those_of_its_mesh():
    assert target.device_kind() == "cpu"
    with on("TPU v5"):
        assert target.device_kind() == "TPU v5"
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), (AxisType.Explicit,))):
        assert target.device_kind() == ""


@pytest.mark.parametrize(("kind", "written"), [("TPU v5 lite", 1), ("TPU v6 lite", 1), ("TPU v5", 0), ("cpu", 0)])
def test_which_devices_write_the_gradients_of_a_gated_activation(kind, written):
    def gradient(hidden, gate):
        return jax.grad(lambda *x: jnp.sum(layers.activation("swiglu", *x)), (0, 1))(hidden, gate)

    shape = jax.ShapeDtypeStruct((4, 8), jnp.bfloat16)
    with on(kind):
        text = str(jax.make_jaxpr(gradient)(shape, shape))
    assert text.count("optimization_barrier") == written


@pytest.mark.parametrize("name", layers.GATED)
def test_gradients_that_are_written_are_the_same(name, monkeypatch):
    rng = np.random.default_rng(0)
    hidden, gate, dy = (jnp.asarray(rng.normal(size=(64, 32)), jnp.float32) for _ in range(3))

    def gradients():
        return jax.jit(lambda *x: jax.vjp(partial(layers.activation, name), *x)[1](dy))(hidden, gate)

    plain = gradients()
    monkeypatch.setattr(layers, "GRADIENTS_WRITTEN", ("cpu",))
    # Fused or not, each is a product of three factors, one of them a sum of two terms: at most 8 roundings.
    for x, y in zip(gradients(), plain, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=8 * 2.0**-24 * float(jnp.abs(y).max()))


@pytest.mark.parametrize(("expert", "held"), [(8, 1), (4, 2), (2, 4)])
def test_experts_hold_rows_for_what_a_device_can_get(expert, held):
    """A token chooses 2 experts once each, so a device that holds one gets at most one row for every token."""
    rows, length = 8, 16
    cfg = ModelConfig(d_model=8, num_heads=2, d_ff=16, moe=MoeConfig(num_experts=8, top_k=2))
    mesh_cfg, mesh = mesh_of(expert, data=1, expert=expert)
    declared = moe.specs(cfg, 1)
    layout = sharding.layout(mesh_cfg, mesh, declared)
    with jax.set_mesh(mesh):
        used = {
            name: jax.device_put(jnp.ones(spec.shape[1:]), layout.act(*spec.axes[1:]))
            for name, spec in declared.items()
        }
        h = jax.device_put(jnp.ones((rows, length, 8)), layout.act("batch"))
        text = str(jax.make_jaxpr(lambda h, p: moe.apply(h, p, cfg, layout)[0])(h, used))
    products = re.findall(r"f32\[(\d+),\d+\][^=\n]* = ragged_dot", text)
    assert products and {int(size) for size in products} == {rows * length * min(2, held)}
