"""GShard's layer with one place an expert, on inputs made to break it, with the experts split 1, 2, 4 and 8 ways;
and its router on random groups of odd sizes.

Outputs and drops against the loop over tokens of `test_moe`, gradients against every expert on every token. Float32,
with the tolerance of that file.
"""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from bigjax import sharding
from bigjax.config import ModelConfig, MoeConfig
from bigjax.models.moe import layers as moe
from bigjax.models.moe import routing as moe_routing
from bigjax.sharding import UNSHARDED
from tests.conftest import mesh_of
from tests.models.test_moe import (
    LENGTH,
    ROWS,
    D,
    algorithm_1,
    close,
    combine_weights,
    inputs,
    literal,
    loss,
    quick_jit,
    routed,
    softmax,
)

EXPERTS = 8
MOE = MoeConfig(num_experts=EXPERTS, router="gshard", capacity_factor=EXPERTS / LENGTH, aux_loss=0.5)
CFG = ModelConfig(d_model=D, num_heads=2, d_ff=32, activation="swiglu", init_std=0.3, moe=MOE)
RNG = np.random.default_rng(5)
FAVOURITE = np.zeros((D, EXPERTS), np.float32)
FAVOURITE[0, 5] = 3.0
PAIRS = np.repeat(RNG.normal(size=(D, EXPERTS // 2)), 2, axis=1).astype(np.float32)
ROUTERS = {
    "random": RNG.normal(size=(D, EXPERTS)).astype(np.float32),
    "all tokens to one expert": FAVOURITE,
    "all gates equal": np.zeros((D, EXPERTS), np.float32),
    "ties of pairs": PAIRS,
}


def case(name: str) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    layer, h, segments, weights = inputs("gshard")
    h = h.copy()
    h[..., 0] = 2.0  # what FAVOURITE reads
    return {**layer, "router": ROUTERS[name]}, h, segments, np.float32(weights)


@cache
def program(ways: int) -> Any:
    """Return `run(layer, h, segments, weights)` with the experts split so many ways: as `test_moe.computed`."""
    mesh_cfg, mesh = mesh_of(ways, data=1, expert=ways)
    declared = moe.specs(CFG, 1)
    layout = sharding.layout(mesh_cfg, mesh, declared)
    step = quick_jit(jax.value_and_grad(partial(loss, cfg=CFG, layout=layout), argnums=(0, 1), has_aux=True))

    def run(layer, *arrays):
        with jax.set_mesh(mesh):
            used = {name: jax.device_put(w, layout.act(*declared[name].axes[1:])) for name, w in layer.items()}
            return jax.device_get(step(used, *(jax.device_put(x, layout.act("batch")) for x in arrays)))

    return run


reference = cache(
    lambda: quick_jit(jax.value_and_grad(partial(loss, cfg=CFG, layout=UNSHARDED, apply=literal), (0, 1), True))
)


def by_the_loop(layer, h, segments) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return outputs, the combine weights `(B, S, E)`, the loss and the dropped share of each row."""
    _, second_key = jax.random.split(jax.random.key(7))
    G, losses, dropped = [], [], []
    for row in range(ROWS):
        gates, real = softmax((h[row] @ layer["router"]).astype(np.float64)), segments[row] != 0
        rnd = np.asarray(jax.random.uniform(jax.random.fold_in(second_key, row), (LENGTH,)))
        combine, aux = algorithm_1(gates, 1, rnd, real)
        wanted = np.sum(algorithm_1(gates, 2 * LENGTH, rnd, real)[0] > 0)
        G.append(combine)
        losses.append(0.5 * aux)
        dropped.append((wanted - np.sum(combine > 0)) / (2 * real.sum()))
    G = np.array(G)
    up, gate = (np.einsum("bsd,edf->bsef", h, layer[name]) for name in ("up", "gate"))
    y = np.einsum("bsef,efd,bse->bsd", gate / (1 + np.exp(-gate)) * up, layer["down"], G)
    return y, G, np.array(losses), np.array(dropped)


@pytest.mark.parametrize("name", ROUTERS)
def test_one_place_an_expert_however_they_are_split(name):
    assert moe_routing.capacity(MOE, LENGTH) == 1
    layer, h, segments, weights = case(name)
    y, G, losses, dropped = by_the_loop(layer, h, segments)
    assert G.sum(axis=1).max() <= 1 and dropped.min() > 0.1
    if name == "all tokens to one expert":  # the first token of a row takes its only place
        assert np.all(G[:, 1:, 5] == 0) and np.all(G[:, 0, 5] > 0.5)
    (_, _), expected = jax.device_get(reference()(layer, h, segments, weights))
    for ways in (1, 2, 4, 8):
        (_, (found, aux)), grads = program(ways)(layer, h, segments, weights)
        np.testing.assert_array_equal(np.any(found != 0, axis=-1), np.any(G > 0, axis=-1))
        close(found, y)
        np.testing.assert_allclose(aux["loss"][:, 0], losses, rtol=1e-5)
        np.testing.assert_allclose(aux["moe/dropped"][:, 0], dropped, rtol=1e-6)
        close(grads, expected)


@pytest.mark.parametrize(("size", "experts"), [(1, 2), (2, 7), (7, 3), (13, 5), (31, 2), (29, 11)])
def test_groups_of_any_size_are_routed_as_by_the_loop(size, experts):
    """Whole numbers as logits, so that many are equal; two in five tokens lean to one expert, a third is padding."""
    rng, cfg = np.random.default_rng(size * experts), MoeConfig(num_experts=experts, router="gshard")
    for capacity in (1, 2, size):
        for _ in range(20):
            logits = rng.integers(-2, 3, (size, experts)).astype(np.float32)
            logits[rng.random(size) < 0.4, rng.integers(experts)] += 3
            real, rnd = rng.random(size) < 2 / 3, rng.random(size).astype(np.float32)
            real[rng.integers(size)] = True
            expected, aux = algorithm_1(np.asarray(jax.nn.softmax(logits)), capacity, rnd, real)
            found = jax.device_get(routed(logits, real, rnd, cfg, capacity))
            np.testing.assert_array_equal(combine_weights(found) > 0, expected > 0)
            np.testing.assert_allclose(combine_weights(found), expected, rtol=1e-6, atol=0)
            np.testing.assert_allclose(found.aux_loss, aux, rtol=1e-5)
