"""Experts in both stacks of an encoder-decoder: what padding may not do, how their losses add up, how it writes."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import models, params
from bigjax.config import Config, DataConfig, MoeConfig, TrainConfig
from bigjax.evaluate.generation import generate
from bigjax.tasks import objectives
from bigjax.train.flops import model_flops_per_token
from tests.models.test_moe import quick_jit
from tests.models_of import model_of

V, S, T, EOS, START = 61, 16, 12, 1, 0
MOE = MoeConfig(num_experts=4, every=2, router="gshard", capacity_factor=0.5, aux_loss=0.3, z_loss=0.1)
MODEL = model_of(
    family="encdec",
    vocab_size=V,
    num_layers=2,
    num_decoder_layers=4,
    d_model=16,
    num_heads=2,
    positions="sinusoidal",
    init_std=0.5,
    moe=MOE,
)
CFG = Config(
    model=MODEL,
    data=DataConfig(seq_len=S, target_len=T),
    train=TrainConfig(objective="span_corruption", global_batch_size=4),
)
TEXTS = [[2, 3, 4, EOS], [5, EOS], [30, 3, 50, 2, 44, 2, EOS]]


@cache
def model_and_params():
    model = models.build(MODEL)
    return model, params.init(model.specs, jax.random.key(3))


def batch() -> dict[str, np.ndarray]:
    rng, read, written = np.random.default_rng(0), np.array([16, 9, 12, 3]), np.array([12, 4, 7, 10])
    segments, weights = np.arange(S) < read[:, None], np.arange(T) < written[:, None]
    ids = {"tokens": (4, S), "inputs": (4, T), "targets": (4, T)}
    made = {name: rng.integers(2, V, shape).astype(np.int32) for name, shape in ids.items()}
    return made | {"segments": segments.astype(np.int32), "weights": weights.astype(np.float32)}


@cache
def compiled():
    model, _ = model_and_params()

    def total(tree, arrays):
        sums = objectives.seq2seq(model, tree, arrays, CFG.train)
        return sums["loss"][0] / sums["loss"][1], sums

    return quick_jit(jax.value_and_grad(total, has_aux=True))


@cache
def said():
    """Return `run(params, arrays)`, what the layers say of themselves."""
    model, _ = model_and_params()

    def run(tree, made):
        rows = {"segments_BS": made["segments"], "inputs_BT": made["inputs"], "written_BT": made["weights"]}
        return model.family.apply(tree, made["tokens"], MODEL, **rows)[1]

    return quick_jit(run)


def test_padding_goes_to_no_expert_on_either_side():
    made, (_, tree) = batch(), model_and_params()
    other = {name: x.copy() for name, x in made.items()}
    other["tokens"][made["segments"] == 0] = 7
    for name in ("inputs", "targets"):
        other[name][made["weights"] == 0] = 7
    (first, sums), grads = compiled()(tree, made)
    (second, _), other_grads = compiled()(tree, other)
    assert first == pytest.approx(float(second), rel=1e-6)
    assert float(sums["moe/dropped"][0] / sums["moe/dropped"][1]) > 0.1  # where room is so short, padding would show
    for name, g in params.names(grads).items():
        np.testing.assert_allclose(g, params.names(other_grads)[name], rtol=0, atol=1e-5 * np.abs(g).max() + 1e-8)


def test_the_experts_losses_are_those_of_both_stacks_row_by_row():
    made, (_, tree) = batch(), model_and_params()
    (_, sums), _ = compiled()(tree, made)
    aux = said()(tree, made)
    assert aux["loss"].shape == (4, 1) and aux["moe/load"].shape == (4, 1, 1 + 2, 4)
    np.testing.assert_allclose(aux["moe/load"].sum(axis=-1), 1, rtol=1e-6)
    # The loss is the sum over three sparse layers, the metrics are their means.
    expected = 3 * (MOE.aux_loss * aux["moe/aux_loss"] + MOE.z_loss * aux["moe/z_loss"])
    np.testing.assert_allclose(aux["loss"], expected, rtol=1e-5)
    weights = made["weights"].sum(axis=1)
    added = sums["loss"][0] - sums["nll"][0]
    np.testing.assert_allclose(added, (aux["loss"][:, 0] * weights).sum(), rtol=1e-4)
    # Sums over parts of a batch are those of the whole; here rows of the other part have no weight.
    halves = np.array([1, 1, 0, 0], np.float32)[:, None]
    parts = [compiled()(tree, made | {"weights": made["weights"] * half})[0][1] for half in (halves, 1 - halves)]
    for name, (total, count) in sums.items():
        np.testing.assert_allclose(sum(part[name][0] for part in parts), total, rtol=1e-5, atol=1e-6, err_msg=name)
        assert sum(part[name][1] for part in parts) == count
    # The encoder reads alone, so that its layer's load does not depend on what is written.
    again = said()(tree, made | {"inputs": made["inputs"][::-1].copy()})
    np.testing.assert_array_equal(again["moe/load"][:, :, 0], aux["moe/load"][:, :, 0])
    assert np.any(again["moe/load"][:, :, 1:] != aux["moe/load"][:, :, 1:])


def test_writing_drops_nothing():
    """Greedy tokens are those of whole rows in which every expert takes all that choose it."""
    model, tree = model_and_params()
    all_in = dataclasses.replace(MODEL, moe=dataclasses.replace(MOE, capacity_factor=None))
    how = {"max_new_tokens": 8, "start_id": START}
    written = generate(model, tree, TEXTS, temperature=0.0, **how)
    longest = max(map(len, TEXTS))
    tokens = np.array([text + [0] * (longest - len(text)) for text in TEXTS])
    segments = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in TEXTS])
    inputs = np.array([[START, *ids[:-1]] for ids in written])

    def likeliest(tree):
        x, _ = model.family.apply(tree, tokens, all_in, inputs_BT=inputs, segments_BS=segments)
        return jnp.argmax(model.family.logits(tree, x, all_in), axis=-1)

    assert quick_jit(likeliest)(tree).tolist() == written


def test_flops_are_those_of_a_dense_twin_and_the_routers():
    """Two experts of 24 features do the work of one MLP of 48; a router multiplies D by E."""
    sparse = dataclasses.replace(MODEL, bias="none", moe=dataclasses.replace(MOE, every=1, d_ff=24))
    dense = dataclasses.replace(sparse, d_ff=48, moe=MoeConfig())
    of = {cfg: model_flops_per_token(cfg, models.build(cfg).specs, S, T) for cfg in (sparse, dense)}
    routers = 6 * 16 * 4 * (2 * S + 4 * T) / S
    assert of[sparse] - of[dense] == pytest.approx(routers)
    counts = params.counts(models.build(sparse).specs, 2)
    assert counts["params_total"] - counts["params_active"] == 6 * 2 * 2 * 16 * 24
