"""Moments in bfloat16: those of optax, random rounding that is right on average, the same bits on every mesh."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from bigjax.config import Config, ConfigError, OptimConfig
from bigjax.params import ParamSpec
from bigjax.train import moments, optimizers
from tests.conftest import mesh_of

SPECS = {"w": ParamSpec((4, 8), ("embed", "mlp"), "matrix", jax.nn.initializers.normal(), ("embed",))}


def optim(**fields) -> OptimConfig:
    return OptimConfig(lr=1e-2, schedule="constant", grad_clip=None, weight_decay=0.0, **fields)


def after(tx: optax.GradientTransformation, steps: int, gradient=lambda step: 1.0):
    """Return the state after some updates."""
    params = {"w": jnp.zeros((4, 8))}

    def step(state, count):
        return tx.update({"w": jnp.full((4, 8), gradient(count), jnp.float32)}, state, params)[1], None

    return jax.jit(lambda: jax.lax.scan(step, tx.init(params), jnp.arange(steps))[0])()


def adam_of(state):
    return optax.tree.get(state, "mu")["w"], optax.tree.get(state, "nu")["w"]


def test_moments_are_rounded_after_each_update():
    found = adam_of(
        after(optimizers.build(optim(moments_dtype="bfloat16"), SPECS, 10), 5, lambda step: 1.0 / (step + 1))
    )
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    mu, nu = np.float32(0), np.float32(0)
    for step in range(5):
        g = np.float32(1) / np.float32(step + 1)
        mu = np.float32(ml_dtypes.bfloat16(np.float32(0.9) * mu + np.float32(1 - 0.9) * g))
        nu = np.float32(ml_dtypes.bfloat16(np.float32(0.95) * nu + np.float32(1 - 0.95) * g * g))
    for array, value in zip(found, (mu, nu), strict=True):
        np.testing.assert_array_equal(array, value)


def test_by_default_the_state_is_as_it_was():
    tx = optimizers.build(optim(), SPECS, 10)
    state = tx.init({"w": jnp.zeros((4, 8))})
    assert not isinstance(state, moments.Stored) and {x.dtype for x in adam_of(state)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("random", [False, True])
def test_a_slow_second_moment_stalls_unless_it_is_rounded_at_random(random):
    """With b2 = 0.999 and gradients of 1 it is 1 - 0.999^t (Kingma & Ba 2015, section 3)."""
    how = optim(moments_dtype="bfloat16", stochastic_rounding=random, b2=0.999)
    found = float(jnp.mean(adam_of(after(optimizers.build(how, SPECS, 2000), 2000))[1].astype(jnp.float32)))
    exact = 1 - 0.999**2000
    if random:
        # Each of 32 numbers takes 2000 steps, off by at most half of 2^-8 each and forgetting by 0.999: 2.0 % in all.
        assert found == pytest.approx(exact, abs=5 * 2**-9 * 500**0.5 / 32**0.5)
    else:
        # From 0.25 to 0.5 numbers are 2^-9 apart, and 0.001 * 0.75 is less than half of that.
        assert found == 0.25


def test_random_rounding_is_right_on_average_and_to_a_neighbour():
    share = 0.3
    x = jnp.full(100_000, 1 + share * 2.0**-7)
    found = moments.stochastically(x, jax.random.key(0))
    assert found.dtype == jnp.bfloat16 and set(np.unique(found).tolist()) == {1.0, 1 + 2.0**-7}
    up = float(jnp.mean(found > 1))
    assert up == pytest.approx(share, abs=5 * (share * (1 - share) / 100_000) ** 0.5)
    exact = np.array([0.0, -2.5, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(np.float32(moments.stochastically(jnp.array(exact), jax.random.key(1))), exact)


def test_the_same_is_drawn_on_every_mesh():
    x, key = jnp.linspace(0, 1, 64).reshape(8, 8), jax.random.key(3)
    alone = moments.stochastically(x, key)
    _, mesh = mesh_of(8, fsdp=4, tensor=2)
    with jax.set_mesh(mesh):
        split = jax.jit(moments.stochastically)(jax.device_put(x, jax.P("fsdp", "tensor")), key)
        assert jax.typeof(split).sharding.spec == jax.P("fsdp", "tensor")
    np.testing.assert_array_equal(alone, split)


def test_rounding_of_what_is_kept_whole_is_refused():
    with pytest.raises(ConfigError, match=r"set optim\.moments_dtype='bfloat16'"):
        Config(optim=OptimConfig(stochastic_rounding=True))
