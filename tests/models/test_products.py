"""Products in low precision: their numbers are those of NumPy and of qwix's own products; scales know no mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
from jax import P

from bigjax.config import Config, DataConfig, ModelConfig, MoeConfig
from bigjax.config.recipes import E4M3, E5M2, RECIPES
from bigjax.errors import ConfigError, UserError
from bigjax.models.family import Family
from bigjax.models.parts import layers, products
from tests.conftest import mesh_of

LARGEST = {"int8": 127.0, E4M3: 448.0, E5M2: 57344.0}
"""Of integers as in Wortsman et al. (2023, section 2.2), of floats as in Micikevicius et al. (2022, table 1)."""

UP, OUT = "BSD,DF->BSF", "BSHK,HKD->BSD"


def model(recipe: str, **fields) -> ModelConfig:
    return ModelConfig(d_model=64, num_heads=4, d_ff=96, matmul=recipe, **fields)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(x: np.ndarray, its_format: str, axes: tuple[int, ...]) -> np.ndarray:
    """Return what is left of an array in a format, with one scale over `axes`, by NumPy alone."""
    scale = np.abs(x).max(axis=axes, keepdims=True) / np.float32(LARGEST[its_format])
    scaled = x / scale
    if its_format == "int8":
        return np.round(scaled).astype(np.float64) * scale
    to = {E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}[its_format]
    return scaled.astype(to).astype(np.float64) * scale


@pytest.mark.sample(2)
@pytest.mark.parametrize("recipe", ["int8", "fp8", "int8_forward", "fp8_forward"])
def test_all_three_products_are_those_of_numpy(recipe):
    x, w, g = normal(0, 2, 8, 64), normal(1, 64, 96), normal(2, 2, 8, 96)
    y, pull = jax.vjp(lambda x, w: products.matrix(UP, x, w, model(recipe), None), jnp.array(x), jnp.array(w))
    dx, dw = pull(jnp.array(g))

    def product(equation, a, b, formats, a_axes, b_axes):
        if formats is not None:
            a, b = rounded(a, formats[0], a_axes), rounded(b, formats[1], b_axes)
        return np.einsum(equation, a.astype(np.float64), b.astype(np.float64))

    own = RECIPES[recipe]
    near = {"rtol": 1e-5, "atol": 1e-5 * 64}  # float32 sums of at most 96 terms of size 1, against float64
    np.testing.assert_allclose(y, product(UP, x, w, own.forward, (2,), (0,)), **near)
    np.testing.assert_allclose(dx, product("BSF,DF->BSD", g, w, own.input_gradient, (2,), (1,)), **near)
    np.testing.assert_allclose(dw, product("BSD,BSF->DF", x, g, own.weight_gradient, (0, 1), (0, 1)), **near)


def test_a_product_is_that_of_qwix():
    x, w = jnp.array(normal(0, 16, 64)), jnp.array(normal(1, 64, 96))
    theirs = qwix.dot_general(
        qwix.quantize(x, jnp.int8, channelwise_axes=(0,), calibration_method=f"absmax,{127.5 / 127}"),
        qwix.quantize(w, jnp.int8, channelwise_axes=(1,), calibration_method=f"absmax,{127.5 / 127}"),
        (((1,), (0,)), ((), ())),
    )
    ours = products.matrix(UP, x[None], w, model("int8"), None)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)


def test_the_error_of_int8_is_that_of_its_steps():
    x, w = normal(0, 1, 64, 512), normal(1, 512, 64)
    ours = products.matrix(UP, jnp.array(x), jnp.array(w), model("int8"), None)
    # Rounding to steps of width s is off by a variance of s^2 / 12 (Widrow & Kollar 2008, section 1.4), on both sides.
    variance = sum(np.mean((np.abs(a).max(axis=axis) / 127) ** 2 / 12) for a, axis in ((x, 2), (w, 0)))
    exact = np.einsum(UP, x, w)
    found = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert found == pytest.approx(variance**0.5, rel=0.05)  # 4096 results, of which the mean square has 1.1 %


def test_nothing_stays_nothing_and_what_is_not_finite_shows():
    w = jnp.array(normal(1, 64, 96))
    x = jnp.zeros((1, 2, 64)).at[0, 1, 3].set(jnp.nan)
    for recipe in ("int8", "fp8", "scaled"):
        y = products.matrix(UP, x, w, model(recipe), None)
        assert not y[0, 0].any() and jnp.isnan(y[0, 1]).all()


def test_the_default_is_the_plain_product():
    x, w = jnp.zeros((2, 8, 64)), jnp.zeros((64, 96))
    ours = jax.make_jaxpr(lambda x, w: products.matrix(UP, x, w, model("default"), None))(x, w)
    assert str(ours) == str(jax.make_jaxpr(lambda x, w: jnp.einsum(UP, x, w))(x, w))


def test_a_split_sum_has_the_scales_of_all_of_it():
    """int8 entries have the same bits on every mesh; scales of each device's own part would differ by percents."""
    x, w = normal(0, 4, 8, 4, 16), normal(1, 4, 16, 64)
    x[:, :, 0] *= 3  # the largest of all lies on the first device

    def run(x, w):
        y, pull = jax.vjp(lambda x, w: products.matrix(OUT, x, w, model("int8"), where), x, w)
        return y, *pull(y)

    where = None
    one = run(jnp.array(x), jnp.array(w))
    _, mesh = mesh_of(8, fsdp=2, tensor=4)
    with jax.set_mesh(mesh):
        where = P("fsdp", "tensor", None)
        placed = jax.device_put(x, P("fsdp", None, "tensor")), jax.device_put(w, P("tensor"))
        split = jax.jit(run)(*placed)
    for a, b in zip(one, split, strict=True):
        # What is left is the order of at most 64 sums in float32, twice.
        np.testing.assert_allclose(a, b, atol=64 * 2.0**-23 * np.abs(a).max())


def test_products_kept_for_the_backward_pass_are_scaled_back_first(capsys):
    cfg = model("int8", remat="dots")
    w = jnp.array(normal(1, 64, 64), jnp.bfloat16)

    def block(x):
        return jnp.sin(products.matrix(UP, jnp.sin(x), w, cfg, None))

    x = jnp.array(normal(0, 2, 8, 64), jnp.bfloat16)
    kept = layers.rematerialised(block, cfg, in_loop=False)
    exact, found = (jax.grad(lambda x: one(x).astype(jnp.float32).sum())(x) for one in (block, kept))  # noqa: B023
    np.testing.assert_array_equal(np.float32(found), np.float32(exact))
    jax.ad_checkpoint.print_saved_residuals(kept, x)
    saved = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    assert "bf16[2,8,64]" in saved and not [one for one in saved if one.startswith(("i32[2", "f32[2"))]


def problems(**changes) -> str:
    with pytest.raises(ConfigError) as caught:
        Config(**changes)
    return str(caught.value)


def test_what_a_recipe_cannot_be_with_is_said_by_name():
    rnn = {"family": "rnn", "positions": "none", "num_heads": 0, "num_kv_heads": 0, "d_ff": 0}
    assert "model.matmul='int8' is for families" in problems(model=ModelConfig(matmul="int8", **rnn))
    assert not Family(specs=lambda cfg: {}, apply=lambda: None).low_precision  # the user's own says that it has it
    spared = ModelConfig(num_layers=4, matmul="int8", matmul_spared_blocks=2)
    assert "leaves no block of 4" in problems(model=spared)
    assert "spares blocks from a recipe" in problems(model=dataclasses.replace(spared, matmul="default"))
    wide = ModelConfig(d_ff=133_152, matmul="int8")  # 133,152 * 127^2 is 2^31 + 124,960
    assert "which can pass 32 bits beyond 133,144" in problems(model=wide)
    windows = ModelConfig(num_layers=8, layer_windows=(4, 0), matmul="int8", matmul_spared_blocks=1)
    assert "set model.matmul_spared_blocks=2" in problems(model=windows, data=DataConfig(seq_len=8))


def test_without_qwix_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(products, "find_spec", lambda name: None)
    products._core.cache_clear()
    with pytest.raises(UserError, match=r"bigjax\[quant\]"):
        products.matrix(UP, jnp.ones((1, 2, 4)), jnp.ones((4, 8)), model("int8"), None)


def test_experts_multiply_by_the_recipe():
    x, w = normal(0, 2, 3, 8, 16), normal(1, 3, 16, 24)
    cfg = model("int8", moe=MoeConfig(num_experts=3))
    found = products.of_experts(jnp.array(x), jnp.array(w), cfg, products.Split())
    expected = np.einsum("RECX,EXY->RECY", rounded(x, "int8", (3,)), rounded(w, "int8", (1,)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    tokens, sizes = x[0].reshape(24, 16), np.array([5, 12, 4])
    found = products.grouped(jnp.array(tokens), jnp.array(w), cfg, products.Split(), jnp.array(sizes))
    ends = np.cumsum(sizes)
    rows, matrices = rounded(tokens, "int8", (1,)), rounded(w, "int8", (1,))
    for expert, (first, last) in enumerate(zip(ends - sizes, ends, strict=True)):
        np.testing.assert_allclose(found[first:last], rows[first:last] @ matrices[expert], rtol=1e-5, atol=1e-4)
    assert not found[ends[-1] :].any()  # of no expert
