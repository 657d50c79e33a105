"""muP against the tables of Yang et al. (2022), and what it is for: updates that do not depend on width."""

import dataclasses
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import models, params
from bigjax.config import Config, ModelConfig, OptimConfig, replace, strict
from bigjax.config.moe import MoeConfig
from bigjax.models.parts import mup
from bigjax.train import optimizers as optim
from tests.models_of import changed

WIDTHS = (64, 256)
SMALL = ModelConfig(vocab_size=32, num_layers=2, d_model=64, num_heads=4, max_seq_len=16, tie_embeddings=False)
FAMILIES = {
    "decoder": {},
    "tied": {"tie_embeddings": True},
    "encoder": {"family": "encoder"},
    "encdec": {"family": "encdec", "positions": "sinusoidal"},
    "moe": {"moe": MoeConfig(num_experts=4)},
}


def at(width: int, parametrization: str = "mup", *, grow: str = "heads", **fields) -> ModelConfig:
    """Return a model of `width` whose base is 64 wide with 4 heads of 16; heads grow in number or in size."""
    heads = {"num_heads": width // 16, "head_dim": 16} if grow == "heads" else {"num_heads": 4, "head_dim": width // 4}
    base = {"mup.base_d_model": 64, "mup.base_head_dim": 16} if parametrization == "mup" else {}
    sizes = {"d_model": width, "d_ff": 4 * width, "num_kv_heads": 0, **heads}
    return changed(SMALL, parametrization=parametrization, **sizes, **base, **fields)


# At four times the base width; by hand from tables 8 (embedding, head, hidden, bias) and 3 (router).
TABLE = {  # name: standard deviation, SGD, Adam, Muon
    "embed/tokens": (1, 4, 1, 1),
    "head/tokens": (1, 4, 1, 1),
    "blocks/attn/q": (1 / 2, 1, 1 / 4, 1),
    "blocks/attn/o": (1 / 2, 1, 1 / 4, 1),
    "blocks/moe/up": (1 / 2, 1, 1 / 4, 1),
    "blocks/moe/down": (1 / 2, 1, 1 / 4, 1),
    "blocks/moe/router": (1 / 4, 1 / 4, 1 / 4, 1 / 2),
    "blocks/attn/q_bias": (None, 4, 1, 1),
    "final_norm/scale": (None, 4, 1, 1),
}


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    std, sgd, adam, muon = TABLE[name]
    spec = params.names(models.build(at(256, **FAMILIES["moe"])).specs)[name]
    if std is not None:
        residual = sqrt(4) if name.endswith(("/o", "/down")) else 1
        drawn = np.asarray(spec.init(jax.random.key(0), spec.shape, jnp.float32))
        # The standard deviation of n normal numbers is known to 1/sqrt(2n); five of these.
        assert drawn.std() == pytest.approx(0.02 * std / residual, rel=5 / sqrt(2 * spec.size))
    assert [mup.learning_rate(spec, one) for one in ("sgd", "adam", "adamw", "muon")] == [sgd, adam, adam, muon]


@pytest.mark.sample(2)
@pytest.mark.parametrize(("optimizer", "column"), [("sgd", 1), ("adam", 2), ("adamw", 2), ("muon", 3)])
def test_the_optimizer_applies_the_table_but_not_to_weight_decay(optimizer, column):
    wide = models.build(at(256, **FAMILIES["moe"])).specs
    plain = jax.tree.map(lambda spec: dataclasses.replace(spec, growth=params.Growth()), wide)
    decay = 0.1 if optimizer in ("adamw", "muon") else 0.0
    # Epsilon, which has a factor of its own, is nothing beside the smallest gradient (2e-6).
    cfg = OptimConfig(name=optimizer, eps=1e-15, schedule="constant", weight_decay=decay, grad_clip=None)
    start = params.init(wide, jax.random.key(0))
    gradient = params.init(wide, jax.random.key(1))

    def update(specs, cfg):
        tx = optim.build(cfg, specs, 10)
        return params.names(tx.update(gradient, tx.init(start), start)[0])

    without = dataclasses.replace(cfg, weight_decay=0.0)
    mine, theirs, bare = update(wide, cfg), update(plain, cfg), update(plain, without)
    for name, row in TABLE.items():
        expected = (theirs[name] - bare[name]) + row[column] * bare[name]
        np.testing.assert_allclose(mine[name], expected, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_the_standard_model(family):
    standard, based = (models.build(at(64, how, **FAMILIES[family])) for how in ("standard", "mup"))
    ours, theirs = (params.init(model.specs, jax.random.key(0)) for model in (based, standard))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_array_equal(*(outputs(model, ours) for model in (based, standard)))


def outputs(model: models.Model, p) -> jax.Array:
    """Return logits `(B, S, V)` of one fixed batch."""
    tokens = jax.random.randint(jax.random.key(2), (4, 16), 0, 32)
    written = {"inputs_BT": tokens} if model.cfg.family == "encdec" else {}
    x, _ = model.family.apply(p, tokens, model.cfg, **written)
    if model.cfg.family == "encoder":
        return model.family.masked_logits(p, x, jnp.broadcast_to(jnp.arange(16), (4, 16)), model.cfg)
    return model.family.logits(p, x, model.cfg)


def test_scores_are_divided_by_head_dim_where_heads_grow():
    assert mup.attention_scale(at(256, grow="size")) == sqrt(16) / 64
    assert mup.attention_scale(at(64, grow="size")) is None is mup.attention_scale(at(256))


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ({"mup.base_d_model": 64}, {"name": "lion"}, "no rule for optim.name='lion'"),
        ({"mup.base_d_model": 64}, {"name": "sgd"}, "optim.weight_decay=0.1"),
        ({}, {}, "needs model.mup.base_d_model"),
        ({"mup.base_d_model": 96}, {}, "model.num_heads=4 would be 1.5 in the base shape"),
        ({"mup.base_d_model": 64, "d_ff": 1001}, {}, "model.d_ff=1001 would be 250.2 .* set model.mup.base_d_ff"),
        ({"mup.base_d_model": 64, "num_kv_heads": 2}, {}, "model.num_kv_heads=2 would be 0.5"),
        ({"mup.base_d_model": 64, "mup.base_num_heads": 3, "mup.base_num_kv_heads": 2}, {}, "3 heads, not a multiple"),
        ({"mup.base_d_model": 64, "init": "fan_in"}, {}, "leave out model.init='fan_in'"),
        ({"mup.base_d_model": 64, "scale_embeddings": True}, {}, "model.scale_embeddings=True, a power of the width"),
        ({"mup.base_d_model": 64, "mup.depth_alpha": 0.5}, {}, "only read with model.mup.base_num_layers"),
        ({"mup.base_d_model": 64, "mup.base_num_layers": 2, "norm_placement": "post"}, {}, "no rules of depth for"),
    ],
)
def test_what_has_no_rule_is_refused(model, changes, said):
    with pytest.raises(strict.ConfigError, match=said):
        replace(Config(), model={"parametrization": "mup", **model}, optim=changes)


# What did not grow with d_model, four times the base, by hand from the spectral condition: standard deviation, SGD,
# Adam and Muon of a matrix whose fans grew by (in, out). Muon's update already has norm sqrt(max(1, out / in)).
UNEVEN = {
    "d_ff fixed": (
        {"d_ff": 512, "mup.base_d_ff": 512},
        {
            "mlp/up": (1 / 4, 1 / 4, 1 / 4, sqrt(1 / 4) * sqrt(512 / 64) / sqrt(512 / 256)),  # (4, 1)
            "mlp/down": (1, 4, 1, sqrt(4)),  # (1, 4)
            "mlp/up_bias": (None, 1, 1, 1),
        },
    ),
    "one kv head": (
        {"num_kv_heads": 1, "mup.base_num_kv_heads": 1},
        {"attn/k": (1 / 4, 1 / 4, 1 / 4, sqrt(1 / 4)), "attn/k_bias": (None, 1, 1, 1), "attn/q": (1 / 2, 1, 1 / 4, 1)},
    ),
    "d_ff twice as wide": (
        {"d_ff": 512, "mup.base_d_ff": 256},
        {"mlp/down": (1 / sqrt(2), 2, 1 / 2, sqrt(2)), "mlp/up_bias": (None, 2, 1, 1)},  # (2, 4)
    ),
    "a norm that all heads share": ({"qk_norm": True}, {"attn/q_norm": (None, 1, 1, 1)}),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_each_parameter_scales_by_its_own_fans(name):
    sizes, table = UNEVEN[name]
    cfg = changed(at(256), **sizes)
    specs = params.names(models.build(cfg).specs)
    for name, (std, *rates) in table.items():
        spec = specs[f"blocks/{name}"]
        if std is not None:
            assert mup.init_scale(spec) == pytest.approx(std, rel=1e-12)
        got = [mup.learning_rate(spec, one) for one in ("sgd", "adam", "muon")]
        assert got == pytest.approx(rates, rel=1e-12), name


# Four times as many layers: by hand from table 1 of Dey et al. (2025) for Adam; for SGD, whose gradients shrink by
# 4 ** -alpha, that much more; Muon's updates, like Adam's, have one size.
@pytest.mark.parametrize(("alpha", "sgd", "adam"), [(1.0, 4, 1), (0.5, 1, 1 / 2)])
def test_depth_scales_what_stands_in_blocks(alpha, sgd, adam):
    cfg = changed(at(64), num_layers=8, **{"mup.base_num_layers": 2, "mup.depth_alpha": alpha})
    specs = params.names(models.build(cfg).specs)
    assert mup.residual_scale(cfg) == 4**-alpha
    for name, spec in specs.items():
        deep = (sgd, adam, adam) if name.startswith("blocks/") else (1, 1, 1)
        assert tuple(mup.learning_rate(spec, one) for one in ("sgd", "adam", "muon")) == pytest.approx(deep), name
        assert mup.gradient_scale(spec) == pytest.approx(4**alpha if name.startswith("blocks/") else 1)
    drawn = np.asarray(params.init(specs, jax.random.key(0))["blocks/mlp/down"])
    assert drawn.std() == pytest.approx(0.02 / sqrt(4), rel=5 / sqrt(2 * drawn.size))  # of two layers, not of eight


def test_blocks_of_a_deeper_model_add_a_part_of_their_output():
    """Twice the layers, the second half of which do nothing, are the shallow model where the rest adds its whole."""
    shallow = models.build(at(64))
    deep = models.build(changed(at(64), num_layers=4, **{"mup.base_num_layers": 2}))
    p = params.init(shallow.specs, jax.random.key(0))

    def extended(name, w):
        writes = name.endswith(("/o", "/o_bias", "/down", "/down_bias"))
        return jnp.concatenate([2 * w, 0 * w] if writes else [w, w])

    blocks = p["blocks"]
    flat = {name: extended(name, w) for name, w in params.names(blocks).items()}
    longer = p | {"blocks": jax.tree.unflatten(jax.tree.structure(blocks), list(flat.values()))}
    np.testing.assert_allclose(outputs(deep, longer), outputs(shallow, p), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_epsilon_keeps_its_size_beside_the_gradients(name):
    """With gradients smaller by what muP says they are, and a large epsilon, the direction of the base is scaled."""
    cfg = OptimConfig(name=name, eps=0.1, schedule="constant", weight_decay=0.0, grad_clip=None)
    grown = models.build(at(256, num_layers=4, **{"mup.base_num_layers": 2})).specs
    plain = jax.tree.map(lambda spec: dataclasses.replace(spec, growth=params.Growth()), grown)
    gradient = params.init(grown, jax.random.key(1))
    small = jax.tree.map(lambda spec, g: g / mup.gradient_scale(spec), grown, gradient)

    def update(specs, gradient):
        tx = optim.build(cfg, specs, 10)
        return tx.update(gradient, tx.init(gradient), gradient)[0]

    expected = jax.tree.map(lambda spec, u: mup.learning_rate(spec, name) * u, grown, update(plain, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), update(grown, small), expected)


def test_biases_of_words_and_classes_do_not_grow():
    for fields in ({"family": "encoder"}, {"family": "encoder", "head": "classification", "num_classes": 3}):
        specs = params.names(models.build(at(256, **fields)).specs)
        bias = specs["head/classes_bias" if "head" in fields else "head/bias"]
        assert [mup.learning_rate(bias, one) for one in ("sgd", "adam")] == [1, 1]


def test_a_base_shape_without_mup_is_refused():
    with pytest.raises(strict.ConfigError, match=r"model\.mup\.base_d_ff=64 is only read by"):
        replace(Config(), model={"mup.base_d_ff": 64})


def test_the_default_has_the_fingerprint_it_had():
    assert strict.fingerprint(replace(Config(), model={"parametrization": "standard"})) == strict.fingerprint(Config())
