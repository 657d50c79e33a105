"""How parameters start, and what must not change a step: scan or unroll, rematerialisation, microbatches, dtypes."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config, models, params, sharding
from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.models.attention import backends as attention
from bigjax.models.parts import layers
from bigjax.params import ParamSpec, names
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests.conftest import mesh_of
from tests.parity import quick_jit

ROWS, SEQ_LEN = 4, 8
BASE = Config(
    model=ModelConfig(
        vocab_size=31, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, d_ff=24, max_seq_len=8, bias="none"
    ),
    data=DataConfig(seq_len=SEQ_LEN),
    train=TrainConfig(global_batch_size=ROWS, steps=10),
    # One update moves the parameters by the gradient.
    optim=OptimConfig(name="sgd", lr=1.0, schedule="constant", momentum=0.0, weight_decay=0.0, grad_clip=None),
)
GRADIENT_TOLERANCE = 1e-6
"""Gradients and parameters here are below 1 and sums of fewer than 100 terms: some 10 float32 roundings of 6e-8."""


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, BASE.model.vocab_size, (ROWS, SEQ_LEN + 1)).astype(np.int32)
    weights = (rng.random((ROWS, SEQ_LEN)) < 0.7).astype(np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


@functools.cache
def start(model: ModelConfig, seed: int = 0) -> Any:
    """Return initial parameters."""
    return jax.device_get(quick_jit(lambda key: params.init(models.build(model).specs, key))(jax.random.key(seed)))


@functools.cache
def compiled_step(cfg: Config):
    """Return the traced step, the compiled step, the state and the batch that it takes."""
    _, mesh = mesh_of(1)
    initial = start(dataclasses.replace(cfg.model, layers="scan", remat="none", dropout=0.0, dtype="float32"))
    with jax.set_mesh(mesh):
        model = models.build(cfg.model)
        layout = sharding.layout(cfg.mesh, mesh, model.specs)
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
        tree, first = jax.device_put((initial, np.int32(0)), jax.NamedSharding(mesh, jax.P()))
        ema = None if cfg.optim.ema_decay is None else tree
        state = step.TrainState(first, tree, tx.init(tree), ema)
        arrays = sharding.put_batch(batch(), mesh, ROWS)
        traced = quick_jit(step.make_train_step(cfg, model, tx, layout)).trace(state, arrays)
        return traced, traced.lower().compile(), state, arrays


def run_step(cfg: Config, at: int = 0) -> tuple[float, step.TrainState, step.TrainState]:
    """Return the loss and the states around one update made as number `at`."""
    _, run, state, arrays = compiled_step(cfg)
    state = dataclasses.replace(state, step=jax.device_put(np.int32(at), state.step.sharding))
    after, metrics = run(state, arrays)
    return float(metrics["loss"]), state, after


def assert_same_step(cfg: Config, other: Config) -> None:
    (loss, _, after), (other_loss, _, other_after) = run_step(cfg), run_step(other)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for name, w in names(after.params).items():
        np.testing.assert_allclose(names(other_after.params)[name], w, rtol=0, atol=GRADIENT_TOLERANCE, err_msg=name)


def named_start(seed: int = 0, **fields) -> dict[str, np.ndarray]:
    return names(start(dataclasses.replace(BASE.model, **fields), seed))


@pytest.mark.parametrize(
    "added",
    [{"qk_norm": True}, {"tie_embeddings": False}, {"bias": "all"}],
    ids=lambda fields: next(iter(fields)),
)
def test_adding_a_parameter_does_not_change_how_others_start(added):
    before, after = named_start(), named_start(**added)
    assert set(before) < set(after)
    for name, w in before.items():
        np.testing.assert_array_equal(after[name], w)


def test_adding_a_layer_does_not_change_how_others_start():
    """Projections into the residual stream start smaller in a deeper model, but in the same direction."""
    before, after = named_start(), named_start(num_layers=5)
    for name, w in before.items():
        rest = after[name][: len(w)] if name.startswith("blocks") else after[name]
        if name in ("blocks/attn/o", "blocks/mlp/down"):
            np.testing.assert_allclose(rest * (5 / 2) ** 0.5, w, rtol=4 * 2.0**-24)
        else:
            np.testing.assert_array_equal(rest, w)


def test_no_two_draws_are_the_same():
    """Neither of two parameters of one shape nor of two layers; nor of two seeds."""
    drawn = named_start()
    slices = [*drawn["blocks/attn/k"], *drawn["blocks/attn/v"], *drawn["blocks/attn/q"][:, :, :2]]
    for a, b in itertools.combinations(slices, 2):
        assert not np.array_equal(a, b)
    assert not np.array_equal(drawn["embed/tokens"], named_start(seed=1)["embed/tokens"])


def test_standard_deviations_are_as_declared():
    """0.02, and 0.02 / sqrt(2 L) into the residual stream (Radford et al. 2019); n draws give it to 1 / sqrt(2 n)."""
    sizes = {"vocab_size": 997, "d_model": 64, "num_layers": 4, "max_seq_len": 256, "d_ff": 256}
    drawn = named_start(**sizes, tie_embeddings=False, qk_norm=True, bias="all", init_std=0.03)
    for name, w in drawn.items():
        if name.endswith("bias"):
            assert not w.any()
        elif "norm" in name:
            assert (w == 1).all()
        else:
            std = 0.03 / 8**0.5 if name in ("blocks/attn/o", "blocks/mlp/down") else 0.03
            assert abs(w.std() / std - 1) < 5 / (2 * w.size) ** 0.5, name
            assert abs(w.mean() / std) < 5 / w.size**0.5, name
        assert w.dtype == np.float32


def test_a_spec_must_say_what_it_contracts():
    zeros = jax.nn.initializers.zeros
    with pytest.raises(ValueError, match="differ in length"):
        ParamSpec((2, 3), ("embed",), "embedding", zeros)
    for kind, contracts in (("matrix", ()), ("norm", ("embed",)), ("matrix", ("mlp",))):
        with pytest.raises(ValueError, match="cannot contract"):
            ParamSpec((2,), ("embed",), kind, zeros, contracts)


def test_unrolled_layers_equal_scanned_ones():
    assert_same_step(BASE, config.replace(BASE, model={"layers": "unroll"}))


POLICIES = ("dots", "full", "save:attn_out,mlp_out", "offload:attn_out")


@pytest.mark.parametrize("remat", POLICIES)
def test_rematerialisation_changes_no_gradient(remat):
    assert_same_step(BASE, config.replace(BASE, model={"remat": remat}))


def test_rematerialisation_recomputes_what_it_does_not_save():
    """Matrix products in the program, forward and back: the less is saved, the more there are."""

    def products(remat: str) -> int:
        return str(compiled_step(config.replace(BASE, model={"remat": remat}))[0].jaxpr).count("dot_general")

    counts = {remat: products(remat) for remat in ("none", *POLICIES)}
    assert counts["none"] < counts["dots"] < counts["full"]
    # Not even the last product of the MLP need be recomputed once its result, and that of attention, is kept.
    assert counts["none"] < counts["save:attn_out,mlp_out"] <= counts["full"]


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    rate, rows = 0.3, jnp.arange(50)
    y = np.asarray(layers.dropout(jnp.ones((50, 20, 30)), rate, jax.random.key(0), rows))
    kept = (y != 0).mean()
    assert abs(kept - (1 - rate)) < 5 * (rate * (1 - rate) / y.size) ** 0.5
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=2.0**-23)
    assert layers.dropout(y, rate, None, None) is y and layers.dropout(y, 0.0, jax.random.key(0), rows) is y


DROPOUT = config.replace(BASE, model={"dropout": 0.4})


@pytest.mark.parametrize("microbatches", [2, 4])
def test_dropout_does_not_depend_on_microbatches(microbatches):
    assert_same_step(DROPOUT, config.replace(DROPOUT, train={"microbatches": microbatches}))


def test_dropout_differs_from_step_to_step_and_repeats_at_the_same_step():
    losses = [run_step(DROPOUT, at)[0] for at in (0, 1, 2, 0)]
    assert len(set(losses[:3])) == 3 and losses[0] == losses[3]
    assert run_step(BASE, 0)[0] == run_step(BASE, 1)[0] not in losses


def test_no_mask_of_a_model_repeats(monkeypatch):
    """Over layers, places within a layer and rows: every mask that a forward pass draws is its own."""
    masks = []

    def recorded(*args: Any) -> jax.Array:
        masks.append(original(*args))
        return masks[-1]

    original = layers.keep_mask
    monkeypatch.setattr(layers, "keep_mask", recorded)
    monkeypatch.setattr(attention, "keep_mask", recorded)
    cfg = dataclasses.replace(DROPOUT.model, layers="unroll")

    @quick_jit
    def drawn(tree, key):
        models.build(cfg).family.apply(tree, batch()["tokens"], cfg, key=key, rows_B=jnp.arange(ROWS))
        return masks

    masks = drawn(start(BASE.model), jax.random.key(1))
    # Embedding, then attention's probabilities, its output and the MLP's output in each layer.
    assert len(masks) == 1 + 3 * cfg.num_layers
    rows = [np.asarray(row).ravel()[: SEQ_LEN * cfg.d_model] for mask in masks for row in mask]
    for a, b in itertools.combinations(rows, 2):
        assert not np.array_equal(a, b)


def test_without_a_key_nothing_is_dropped():
    evaluated, plain = (
        quick_jit(functools.partial(models.build(cfg).family.apply, cfg=cfg))(start(BASE.model), batch()["tokens"])[0]
        for cfg in (DROPOUT.model, BASE.model)
    )
    np.testing.assert_array_equal(evaluated, plain)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    adamw = {"name": "adamw", "ema_decay": 0.9}
    cfg = config.replace(BASE, model={"dtype": "bfloat16"}, optim=adamw)
    traced, _, _, _ = compiled_step(cfg)
    assert "bf16" in str(traced.jaxpr)
    loss, _, after = run_step(cfg)
    floats = [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {np.dtype(np.float32)}
    assert compiled_step(cfg)[1].out_info[1]["loss"].dtype == np.float32
    # Logits start near 0, so the loss is near log V; they are rounded to 8 bits a few times.
    assert loss == pytest.approx(run_step(BASE)[0], rel=2.0**-8)
    assert loss != run_step(BASE)[0]
