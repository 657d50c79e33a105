"""Sparse layers against loops over tokens written from the papers, and split over experts against one device.

Float32. Outputs are sums over at most 64 terms in two products, so they are off by about 10 machine epsilons of their
size; 2e-6 of the largest is allowed.
"""

import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import models, params, sharding
from bigjax.config import MESH_AXES, Config, DataConfig, ModelConfig, MoeConfig, TrainConfig
from bigjax.errors import ConfigError
from bigjax.models.moe import layers as moe
from bigjax.models.moe import routing as moe_routing
from bigjax.preflight.equivalence.observation import COMPILE_STEP
from bigjax.preflight.plan.analytic import flops as analytic_flops
from bigjax.preflight.plan.analytic import share as analytic_share
from bigjax.sharding import UNSHARDED
from tests.conftest import mesh_of
from tests.models_of import model_of

S, E = 24, 4
RNG = np.random.default_rng(0)

INPUTS = {
    "random": RNG.normal(size=(S, E)),
    "sharp": 20 * RNG.normal(size=(S, E)),
    "all tokens to one expert": np.tile([0.0, 5.0, 1.0, 0.0], (S, 1)) + 0.1 * RNG.normal(size=(S, E)),
    "all gates equal": np.zeros((S, E)),
    "ties of pairs": np.repeat(RNG.integers(0, 2, (S, E // 2)).astype(float), 2, axis=1),
    "one token's worth each": np.tile(10 * np.eye(E), (S // E, 1)),
}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def top_2(g: np.ndarray) -> tuple[float, int, float, int]:
    e1, e2 = np.argsort(-g, kind="stable")[:2]
    return g[e1], e1, g[e2], e2


def algorithm_1(g: np.ndarray, C: int, rnd: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, float]:
    """Lepikhin et al. 2020, algorithm 1, line by line; padding is no part of the group. Returns G and the loss."""
    tokens = np.flatnonzero(real)
    G, c = np.zeros(g.shape), np.zeros(g.shape[1], int)  # line 1
    m = g[tokens].mean(axis=0)  # 2, 3
    for s in tokens:  # 4
        g1, e1, g2, e2 = top_2(g[s])  # 5
        g1 = g1 / (g1 + g2)  # 6
        position = c[e1]  # 7
        if position < C:  # 8
            G[s, e1] = g1  # 9
        c[e1] = position + 1  # 11
    loss = np.mean(c / len(tokens) * m)  # 13
    for s in tokens:  # 14
        g1, e1, g2, e2 = top_2(g[s])  # 15
        g2 = g2 / (g1 + g2)  # 16
        position = c[e2]  # 18
        if position < C and 2 * g2 > rnd[s]:  # 17, 19
            G[s, e2] = g2  # 20
        c[e2] = position + 1  # 22
    return G, loss


def switch(g: np.ndarray, C: int, real: np.ndarray) -> tuple[np.ndarray, float]:
    """Fedus et al. 2022, section 2.1: the best expert, as long as it has room; equations 4 to 6."""
    tokens = np.flatnonzero(real)
    G, c = np.zeros((S, E)), np.zeros(E, int)
    for s in tokens:
        e = int(np.argmax(g[s]))
        if c[e] < C:
            G[s, e] = g[s, e]
        c[e] += 1
    return G, E * float(np.sum(c / len(tokens) * g[tokens].mean(axis=0)))


def mixtral(logits: np.ndarray, k: int, real: np.ndarray) -> np.ndarray:
    """Jiang et al. 2024, section 2.1: softmax of the k largest logits."""
    G = np.zeros((S, E))
    for s in np.flatnonzero(real):
        best = np.argsort(-logits[s], kind="stable")[:k]
        G[s, best] = softmax(logits[s, best])
    return G


quick_jit = partial(jax.jit, compiler_options=COMPILE_STEP)
routed = quick_jit(moe_routing.route, static_argnums=(3, 4))


def combine_weights(found: moe_routing.Routing) -> np.ndarray:
    """Return G: the weight of each expert for each token."""
    G = np.zeros((len(found.experts), len(found.load)))
    np.add.at(G, (np.arange(len(G))[:, None], found.experts), np.where(found.kept, found.weights, 0))
    return G


def some(real: str) -> np.ndarray:
    return np.ones(S, bool) if real == "whole" else RNG.random(S) < 0.7


@pytest.mark.parametrize("real", ["whole", "with padding"])
@pytest.mark.parametrize("capacity", [1, 3, 12, S])
@pytest.mark.parametrize("name", INPUTS)
def test_gshard_is_algorithm_1(name, capacity, real):
    logits, counted, cfg = INPUTS[name].astype(np.float32), some(real), MoeConfig(num_experts=E, router="gshard")
    rnd = RNG.random(S).astype(np.float32)
    gates = np.asarray(jax.nn.softmax(logits))
    for uniform in (rnd, None):
        found = routed(logits, counted, uniform, cfg, capacity)
        # Without random numbers the second choice is always dispatched: below any 2 g2.
        expected, loss = algorithm_1(gates, capacity, np.full(S, -1.0) if uniform is None else rnd, counted)
        np.testing.assert_array_equal(combine_weights(found) > 0, expected > 0)
        np.testing.assert_allclose(combine_weights(found), expected, rtol=1e-6, atol=0)
        np.testing.assert_allclose(found.aux_loss, loss, rtol=1e-5)
        wanted = 2 * counted.sum() if uniform is None else np.sum(algorithm_1(gates, 2 * S, rnd, counted)[0] > 0)
        np.testing.assert_allclose(found.dropped, (wanted - np.sum(expected > 0)) / (2 * counted.sum()), rtol=1e-6)


@pytest.mark.parametrize("capacity", [1, 3, S])
@pytest.mark.parametrize("name", INPUTS)
def test_switch_is_the_best_expert_with_room(name, capacity):
    logits, counted, cfg = INPUTS[name].astype(np.float32), some("padded"), MoeConfig(num_experts=E, router="switch")
    found = routed(logits, counted, None, cfg, capacity)
    expected, loss = switch(np.asarray(jax.nn.softmax(logits)), capacity, counted)
    np.testing.assert_allclose(combine_weights(found), expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(found.aux_loss, loss, rtol=1e-5)
    kept = np.sum(expected > 0) / counted.sum()
    np.testing.assert_allclose(found.dropped, 1 - kept, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", INPUTS)
def test_topk_renormalises_and_drops_nothing(name, k):
    logits, counted, cfg = INPUTS[name].astype(np.float32), some("padded"), MoeConfig(num_experts=E, top_k=k)
    found = routed(logits, counted, None, cfg, None)
    np.testing.assert_allclose(combine_weights(found), mixtral(logits, k, counted), rtol=1e-5, atol=1e-7)
    assert found.dropped == 0


def test_losses_and_metrics_have_their_closed_forms():
    cfg, real = MoeConfig(num_experts=E, router="switch"), np.ones(S, bool)
    balanced = routed(jnp.float32(INPUTS["one token's worth each"]), real, None, cfg, None)
    np.testing.assert_allclose(balanced.aux_loss, 1, rtol=1e-6)  # the least, for equal shares and mean gates
    np.testing.assert_allclose(balanced.load, np.full(E, 1 / E))
    equal = routed(jnp.zeros((S, E)), real, None, cfg, None)
    np.testing.assert_allclose([equal.entropy, equal.z_loss], [np.log(E), np.log(E) ** 2], rtol=1e-6)
    np.testing.assert_array_equal(equal.load, [1, 0, 0, 0])  # of equal gates the first
    gshard = routed(jnp.zeros((S, E)), real, None, MoeConfig(num_experts=E, router="gshard"), None)
    np.testing.assert_allclose([gshard.aux_loss, gshard.load[0]], [1 / E / E, 1 / 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("factor", "group", "experts", "expected"),
    [(1.25, 128, 8, 20), (1.1, 20, 2, 11), (2.0, 7, 4, 4), (0.01, 8, 8, 1), (1e30, 8, 4, 8), (1e-30, 8, 4, 1)],
)
def test_capacity_is_rounded_up(factor, group, experts, expected):
    assert moe_routing.capacity(MoeConfig(num_experts=experts, capacity_factor=factor), group) == expected


def test_a_group_of_padding_alone_is_finite():
    for router in ("gshard", "switch", "topk"):
        cfg = MoeConfig(num_experts=E, router=router)
        found = routed(jnp.zeros((S, E)), np.zeros(S, bool), None, cfg, 2)
        assert all(np.isfinite(x).all() for x in found) and not found.kept.any()


ROUTERS = {
    "gshard": MoeConfig(num_experts=8, router="gshard", capacity_factor=1.0, jitter=0.1, z_loss=0.1, aux_loss=0.5),
    "gshard in groups": MoeConfig(num_experts=8, router="gshard", capacity_factor=1.0, group_size=4),
    "switch": MoeConfig(num_experts=8, router="switch", capacity_factor=0.8, jitter=0.1, z_loss=0.1, d_ff=24),
    "topk": MoeConfig(num_experts=8, top_k=3, capacity_factor=2.0),
    "dropless": MoeConfig(num_experts=8, top_k=2, z_loss=0.1),
}
ROWS, LENGTH, D = 8, 16, 16


def model(router: str) -> ModelConfig:
    return ModelConfig(d_model=D, num_heads=2, d_ff=32, activation="swiglu", init_std=0.3, moe=ROUTERS[router])


@cache
def inputs(router: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Return one layer's parameters, hidden states, segments with padding, and weights of a loss."""
    rng, declared = np.random.default_rng(1), moe.specs(model(router), 1)
    layer = jax.tree.map(lambda w: np.asarray(w[0]), params.init(declared, jax.random.key(0)))
    layer["router"] = layer["router"] * 3 + np.eye(D, 8)  # far from balanced
    segments = (np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH + 1, (ROWS, 1))).astype(np.int32)
    return layer, rng.normal(size=(ROWS, LENGTH, D)).astype(np.float32), segments, rng.normal(size=(ROWS, LENGTH, D))


def loss(layer, h, segments, weights, cfg: ModelConfig, layout, apply=moe.apply):
    y, aux = apply(h, layer, cfg, layout, jax.random.key(7), _rows(h), segments)
    return jnp.sum(y * weights) + jnp.sum(aux["loss"]), (y, aux)


def _rows(h):
    rows, sharding_of = jnp.arange(h.shape[0]), jax.typeof(h).sharding
    return rows if sharding_of.mesh.empty else jax.reshard(rows, jax.P(sharding_of.spec[0]))


@cache
def computed(router: str, **axes) -> Any:
    """Return ((loss, (y, aux)), gradients of the layer and of h) on a mesh, on the host."""
    cfg, (layer, h, segments, weights) = model(router), inputs(router)
    mesh_cfg, mesh = mesh_of(int(np.prod(list(axes.values()), dtype=int)), **{"data": 1, **axes})
    declared = moe.specs(cfg, 1)
    layout = sharding.layout(mesh_cfg, mesh, declared)
    with jax.set_mesh(mesh):
        used = {name: jax.device_put(w, layout.act(*declared[name].axes[1:])) for name, w in layer.items()}
        arrays = [jax.device_put(x, layout.act("batch")) for x in (h, segments, np.float32(weights))]
        run = quick_jit(jax.value_and_grad(partial(loss, cfg=cfg, layout=layout), argnums=(0, 1), has_aux=True))
        return jax.device_get(run(used, *arrays))


def literal(h, layer, cfg: ModelConfig, layout, key, rows, segments):
    """Every expert on every token, weighted by G: what a sparse layer means, from the routing alone."""
    real = segments != 0
    jitter_key, second_key = jax.random.split(key)
    draw = jax.vmap(lambda key, row: jax.random.fold_in(key, row), in_axes=(None, 0))
    low, high = 1 - cfg.moe.jitter, 1 + cfg.moe.jitter
    noise = jax.vmap(lambda k: jax.random.uniform(k, h.shape[1:], minval=low, maxval=high))(draw(jitter_key, rows))
    second = jax.vmap(lambda k: jax.random.uniform(k, h.shape[1:2]))(draw(second_key, rows))
    logits = (h * noise if cfg.moe.jitter else h) @ layer["router"]
    G = cfg.moe.group_size or h.shape[1]
    groups = [x.reshape(-1, G, *x.shape[2:]) for x in (logits, real, second)]
    capacity = moe_routing.capacity(cfg.moe, G)
    routing = jax.vmap(lambda *group: moe_routing.route(*group, cfg.moe, capacity))(*groups)
    combine = jnp.sum(jax.nn.one_hot(routing.experts, 8) * routing.weights[..., None], axis=-2).reshape(*h.shape[:2], 8)
    hidden = jax.nn.silu(jnp.einsum("bsd,edf->bsef", h, layer["gate"])) * jnp.einsum("bsd,edf->bsef", h, layer["up"])
    y = jnp.einsum("bsef,efd,bse->bsd", hidden, layer["down"], combine)
    total = cfg.moe.aux_loss * routing.aux_loss + cfg.moe.z_loss * routing.z_loss
    return y, {"loss": total.reshape(h.shape[0], -1), "dropped": routing.dropped}


def close(actual: Any, expected: Any) -> None:
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6 * np.abs(y).max() + 1e-7, err_msg=str(path))


@pytest.mark.parametrize("router", ROUTERS)
def test_one_device_computes_every_expert_weighted(router):
    layer, h, segments, weights = inputs(router)
    expected = jax.value_and_grad(partial(loss, cfg=model(router), layout=UNSHARDED, apply=literal), (0, 1), True)
    (_, (y, aux)), grads = quick_jit(expected)(layer, h, segments, weights)
    (_, (found_y, found_aux)), found_grads = computed(router, expert=1)
    close((found_y, found_aux["loss"]), (y, aux["loss"]))
    np.testing.assert_array_equal(found_aux["moe/dropped"].ravel(), aux["dropped"])
    close(found_grads, grads)
    assert (aux["dropped"].max() > 0.1) == (ROUTERS[router].capacity_factor is not None)


MESHES = [{"expert": 8}, {"fsdp": 2, "expert": 2, "tensor": 2}, {"expert": 2}, {"expert": 4}]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("router", "axes"),
    [(router, axes) for router in ROUTERS for axes in (MESHES if router in ("gshard", "dropless") else MESHES[:2])],
    ids=str,
)
def test_experts_on_several_devices_compute_the_same(router, axes):
    (_, (y, aux)), grads = computed(router, expert=1)
    (_, (found_y, found_aux)), found_grads = computed(router, **axes)
    for name in ("moe/dropped", "moe/load"):
        np.testing.assert_array_equal(found_aux[name], aux[name])
    np.testing.assert_array_equal(found_y == 0, y == 0)  # the tokens that pass by
    close((found_y, found_aux), (y, aux))
    close(found_grads, grads)


def test_experts_must_divide_and_dense_models_have_none():
    cfg, mesh = mesh_of(8, data=2, expert=4)
    declared = moe.specs(ModelConfig(d_model=D, num_heads=2, moe=MoeConfig(num_experts=6)), 1)
    with pytest.raises(sharding.ShardingError, match=r"axis experts of size 6 is not divisible by mesh\.expert=4"):
        sharding.layout(cfg, mesh, declared)
    with pytest.raises(sharding.ShardingError, match=r"mesh\.expert=4: not yet for this model"):
        sharding.layout(cfg, mesh, models.build(ModelConfig()).specs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 4, "router": "switch", "top_k": 2}, "top_k=2, but model.moe.router='switch' always chooses 1"),
        ({"num_experts": 4, "router": "gshard", "top_k": 1}, "top_k=1, but model.moe.router='gshard' always chooses 2"),
        ({"num_experts": 2, "top_k": 3}, "num_experts=2 is fewer than the 3 experts"),
        ({"num_experts": 1, "router": "gshard"}, "num_experts=1 is fewer than the 2 experts"),
        ({"num_experts": 4, "every": 3}, "num_layers=4 is not divisible by model.moe.every=3"),
        ({"num_experts": 4, "group_size": 100}, "data.seq_len=256 is not divisible by model.moe.group_size=100"),
    ],
)
def test_fields_that_clash_are_named(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(model=ModelConfig(moe=MoeConfig(**fields)))


def test_both_stacks_of_an_encoder_decoder_are_checked():
    moe_cfg = MoeConfig(num_experts=4, every=2, group_size=16)
    model = model_of(family="encdec", positions="none", num_layers=2, num_decoder_layers=3, moe=moe_cfg)
    with pytest.raises(ConfigError) as caught:
        Config(model=model, data=DataConfig(seq_len=32, target_len=24), train=TrainConfig(objective="span_corruption"))
    assert str(caught.value).splitlines() == [
        "model.encdec.num_decoder_layers=3 is not divisible by model.moe.every=2: set "
        "model.encdec.num_decoder_layers=2",
        "data.target_len=24 is not divisible by model.moe.group_size=16: set model.moe.group_size=8",
    ]


def test_an_encoder_has_no_experts_yet():
    model = ModelConfig(family="encoder", moe=MoeConfig(num_experts=4))
    with pytest.raises(
        ConfigError, match=r"model\.moe\.num_experts=4 needs model\.family='decoder' or 'encdec', not 'encoder'"
    ):
        Config(model=model)


def test_analytic_flops_count_the_places_of_experts():
    """Against the products written out: two devices, each with half of the experts and all places for them."""
    # 8 rows of 4 groups, 3 places an expert in each; or 2 choices of 256 tokens for 4 experts.
    for factor, of_an_expert in ((1.5, 8 * 4 * 3), (None, 2 * 256 / 4)):
        moe_cfg = MoeConfig(num_experts=4, capacity_factor=factor, group_size=8)
        sizes = {"vocab_size": 64, "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "bias": "none"}
        cfg = Config(
            model=ModelConfig(**sizes, moe=moe_cfg), data=DataConfig(seq_len=32), train=TrainConfig(global_batch_size=8)
        )
        mesh = dict.fromkeys(MESH_AXES, 1) | {"expert": 2}
        tokens, scores = 4 * 32, 4 * 2 * 32 * 32
        layer = 3 * (tokens * (4 * 16 * 16 + 16 * 4) + 2 * scores * 8)
        # Without a capacity the gradient of an expert's matrices takes the 2 choices of all 256 tokens, others masked.
        of_gradient = 2 * 256 if factor is None else of_an_expert
        layer += 2 * (2 * of_an_expert + of_gradient) * 2 * 16 * 24
        share = analytic_share.share(cfg, mesh)
        assert analytic_flops.compiled_flops(share) == pytest.approx(2 * (2 * layer + 3 * tokens * 64 * 16))


def test_a_token_without_room_passes_by_the_residual():
    cfg = ModelConfig(d_model=D, num_heads=2, moe=MoeConfig(num_experts=8, router="switch", capacity_factor=1.0))
    layer, h, *_ = inputs("switch")
    layer = {"router": np.zeros((D, 8), np.float32), "up": layer["up"], "down": layer["down"]}
    y, aux = moe.apply(jnp.asarray(h), layer, cfg, UNSHARDED)
    room = LENGTH // 8
    assert np.all(y[:, :room] != 0) and not y[:, room:].any()
    np.testing.assert_allclose(aux["moe/dropped"], 1 - room / LENGTH)
    everything, _ = moe.apply(jnp.asarray(h), layer, cfg, UNSHARDED, dropless=True)
    np.testing.assert_allclose(everything[:, :room], y[:, :room], rtol=1e-5, atol=1e-7)
    assert np.all(everything != 0)
