"""Losses equal PyTorch and closed forms; the chunked loss equals the plain one on any mesh and needs less memory."""

import re
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import sharding
from bigjax.params import ParamSpec
from bigjax.sharding import UNSHARDED, Layout
from bigjax.tasks import losses
from bigjax.tasks.losses import (
    CrossEntropy,
    TableGradient,
    binary_log_loss,
    chunked_cross_entropy,
    cross_entropy,
    mean_squared_error,
)
from bigjax.train import reduction
from tests.conftest import mesh_of
from tests.models.test_written_once import on
from tests.parity import quick_jit

B, S, D, V = 4, 12, 10, 36
FLOAT32 = {"rtol": 2e-6, "atol": 2e-6}
"""Sums of at most V terms of size 1 in float32: some 10 roundings of 1.2e-7."""


class Problem(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def problem(vocab: int = V) -> Problem:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((B, S, D)), rng.standard_normal((vocab, D))
    weights = rng.choice([0.0, 0.25, 1.0], (B, S))
    labels = rng.integers(0, vocab, (B, S))
    labels[0, :2] = 0, vocab - 1  # also the first and the last class
    return Problem(x.astype(np.float32), w.astype(np.float32), labels, weights.astype(np.float32))


def plain(x, w, labels, weights, *, final_softcap=None, layout: Layout = UNSHARDED, **options) -> CrossEntropy:
    out_sharding = layout.act("batch", "seq", "vocab")
    logits = jnp.einsum("BSD,VD->BSV", x, w, preferred_element_type=jnp.float32, out_sharding=out_sharding)
    logits = logits if final_softcap is None else final_softcap * jnp.tanh(logits / final_softcap)
    return cross_entropy(logits, labels, weights, **options)


def with_gradients(loss: Any, arrays: Problem, **options) -> tuple[CrossEntropy, Any]:
    """Return the sums, and the gradient of the mean loss with respect to x and w."""

    def mean(x, w):
        sums = loss(x, w, arrays.labels, arrays.weights, **options)
        return sums.total / sums.weight, sums

    grads, sums = quick_jit(jax.grad(mean, argnums=(0, 1), has_aux=True))(arrays.x, arrays.w)
    return sums, grads


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_equals_pytorch(smoothing):
    torch = pytest.importorskip("torch", reason="parity with PyTorch's losses needs PyTorch")
    arrays = problem()
    logits = 3 * arrays.x @ arrays.w.T
    ours = cross_entropy(logits, arrays.labels, arrays.weights, label_smoothing=smoothing)

    def theirs(label_smoothing: float) -> float:
        per_token = torch.nn.functional.cross_entropy(
            torch.tensor(logits).flatten(0, 1),
            torch.tensor(arrays.labels).flatten(),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        return (per_token * torch.tensor(arrays.weights).flatten()).sum().item()

    assert float(ours.total) == pytest.approx(theirs(smoothing), rel=2e-6)
    assert float(ours.nll) == pytest.approx(theirs(0.0), rel=2e-6)
    assert float(ours.weight) == arrays.weights.sum() and float(ours.z_loss) == 0


def test_z_loss_is_the_square_of_log_z():
    arrays = problem()
    logits = np.float64(arrays.x @ arrays.w.T)
    log_z = np.log(np.exp(logits).sum(-1))
    ours = cross_entropy(jnp.float32(logits), arrays.labels, arrays.weights, z_loss=0.03)
    assert float(ours.z_loss) == pytest.approx(0.03 * (log_z**2 * arrays.weights).sum(), rel=2e-6)
    assert float(ours.total) == pytest.approx(float(ours.nll) + float(ours.z_loss), rel=2e-6)


def test_cross_entropy_of_extreme_logits_is_finite_and_exact():
    logits = jnp.array([[[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]]])
    ours = cross_entropy(logits, jnp.array([[1, 2]]), jnp.ones((1, 2)))
    assert float(ours.nll) == pytest.approx(1e4 + np.log(3), rel=1e-6)


OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.02},
    "softcap": {"final_softcap": 3.0},
    "all": {"label_smoothing": 0.1, "z_loss": 0.02, "final_softcap": 3.0},
}


@pytest.mark.parametrize(("chunks", "name"), [*((3, name) for name in OPTIONS), (1, "all"), (12, "all")])
def test_chunked_equals_plain(chunks, name):
    options = OPTIONS[name]
    expected, expected_grads = with_gradients(plain, problem(), **options)
    sums, grads = with_gradients(chunked_cross_entropy, problem(), chunks=chunks, **options)
    np.testing.assert_allclose(sums, expected, rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), grads, expected_grads)


def test_chunked_without_a_gradient_gives_the_same_sums():
    arrays = problem()
    alone = chunked_cross_entropy(*arrays, chunks=3, **OPTIONS["all"])
    np.testing.assert_allclose(alone, plain(*arrays, **OPTIONS["all"]), rtol=2e-6)


def test_chunked_in_bfloat16_is_as_close_to_float32_as_plain_is():
    """Inputs are rounded once; sums stay in float32, so values agree to float32 and gradients to a few bfloat16 ulp."""
    exact = problem()
    rounded = exact._replace(x=jnp.bfloat16(exact.x), w=jnp.bfloat16(exact.w))
    widened = exact._replace(x=jnp.float32(rounded.x), w=jnp.float32(rounded.w))
    expected, expected_grads = with_gradients(plain, widened, **OPTIONS["all"])
    sums, grads = with_gradients(chunked_cross_entropy, rounded, chunks=3, **OPTIONS["all"])
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        assert grad.dtype == jnp.bfloat16
        # dlogits, the product and the scaling by the mean are each rounded to 8 bits, in sums of up to V terms.
        np.testing.assert_allclose(np.float32(grad), reference, rtol=0, atol=4 * 2.0**-8 * np.abs(reference).max())


def test_the_gradient_of_a_mean_in_bfloat16_is_that_of_the_sum_rounded_once():
    arrays = problem()
    x, w = jnp.bfloat16(arrays.x), jnp.bfloat16(arrays.w)

    def gradients(divisor: float):
        def scaled(x, w):
            return chunked_cross_entropy(x, w, arrays.labels, arrays.weights, chunks=3).total / divisor

        return jax.grad(scaled, (0, 1))(x, w)

    # 1/215 rounded to bfloat16 is 0.9973/215: not to be seen in one number, but in all of them together.
    for mean, total in zip(gradients(215.0), gradients(1.0), strict=True):
        expected = (np.float32(total) * np.float32(1 / 215)).astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.float32(mean), np.float32(expected))


@pytest.mark.parametrize("how", get_args(TableGradient))
@pytest.mark.parametrize("axes", [{}, {"data": 2, "tensor": 2}], ids=["one device", "data 2 x tensor 2"])
def test_all_ways_to_the_gradient_of_the_table_give_the_same(how, axes, monkeypatch):
    """As close to float32 as the plain loss, whose bounds are those of one device; two summands are rounded once more.

    The matrix is one that `train.reduction` marks: its gradient is a sum of two summands, made after the loss.
    """
    exact = problem()
    rounded = exact._replace(x=jnp.bfloat16(exact.x), w=jnp.bfloat16(exact.w))
    widened = exact._replace(x=jnp.float32(rounded.x), w=jnp.float32(rounded.w))
    _, expected = with_gradients(plain, widened, **OPTIONS["all"])
    monkeypatch.setattr(losses, "_table_gradient", lambda *_: how)
    options = {"chunks": 3, **OPTIONS["all"]}
    if not axes:
        _, found = with_gradients(chunked_cross_entropy, rounded, **options)
    else:
        cfg, mesh = mesh_of(4, **axes)
        specs = {"table": ParamSpec((V, D), ("vocab", "embed"), "head", jax.nn.initializers.zeros)}
        with jax.set_mesh(mesh):
            layout = sharding.layout(cfg, mesh, specs)
            rows, table = (jax.NamedSharding(mesh, layout.act(axis)) for axis in ("batch", "vocab"))
            where = Problem(rows, table, rows, rows)
            placed = Problem(*(jax.device_put(array, at) for array, at in zip(rounded, where, strict=True)))

            def gradients(x, w):
                def mean(x, w):
                    sums = chunked_cross_entropy(x, w, placed.labels, placed.weights, layout=layout, **options)
                    return sums.total / sums.weight

                dx, dw = jax.grad(mean, (0, 1))(x, reduction.mark({"table": w}, specs, layout)["table"])
                assert jax.typeof(dw).sharding.spec.unreduced == {"data"}
                return dx, reduction.total(dw)

            found = quick_jit(gradients)(placed.x, placed.w)
    for grad, reference in zip(found, expected, strict=True):
        assert grad.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(grad), reference, rtol=0, atol=5 * 2.0**-8 * np.abs(reference).max())


@pytest.mark.parametrize(
    ("kind", "tokens", "width", "vocab", "how"),
    [
        ("TPU v5", 8192, 4096, 128256, "at once"),
        ("TPU v5", 8193, 4096, 128256, "added"),
        ("TPU v5 lite", 8192, 4096, 128256, "again"),
        ("TPU v5 lite", 8192, 4096, 128257, "at once"),  # which 8 chunks do not divide
        ("TPU v5 lite", 32768, 4096, 128256 // 4, "added"),  # to half a GiB
    ],
)
def test_the_way_to_the_gradient_of_the_table_keeps_the_least(kind, tokens, width, vocab, how):
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((1, tokens, width), (vocab, width)))
    with on(kind):
        assert losses._table_gradient(x, w, 8) == how
        assert losses._table_gradient(x.update(dtype=jnp.float32), w, 8) == "added"


MESHES = {
    "vocab over tensor 4": (4, {"data": 1, "tensor": 4}, V),
    "batch over data 4": (4, {"data": 4}, V),
    "batch over data 2 and fsdp 2, vocab over tensor 2": (8, {"data": 2, "fsdp": 2, "tensor": 2}, V),
    "odd vocab whole on tensor 2": (4, {"data": 2, "tensor": 2}, 37),
}


@pytest.mark.parametrize("case", MESHES)
def test_sharded_equals_one_device(case):
    num_devices, axes, vocab = MESHES[case]
    arrays = problem(vocab)
    expected, expected_grads = with_gradients(plain, arrays, **OPTIONS["all"])
    cfg, mesh = mesh_of(num_devices, **axes)
    table = ParamSpec((vocab, D), ("vocab", "embed"), "embedding", jax.nn.initializers.zeros)
    with jax.set_mesh(mesh):
        layout = sharding.layout(cfg, mesh, {"table": table})
        placed = Problem(
            *(
                jax.device_put(array, jax.NamedSharding(mesh, layout.act(*names)))
                for array, names in zip(
                    arrays,
                    (("batch", "seq", "embed"), ("vocab", "embed"), ("batch", "seq"), ("batch", "seq")),
                    strict=True,
                )
            )
        )
        for loss, options in ((plain, {}), (chunked_cross_entropy, {"chunks": 3})):
            sums, grads = with_gradients(loss, placed, layout=layout, **OPTIONS["all"], **options)
            np.testing.assert_allclose(sums, expected, rtol=2e-6)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FLOAT32), grads, expected_grads)
            assert [grad.sharding.spec for grad in grads] == [placed.x.sharding.spec, placed.w.sharding.spec]


def test_the_chunked_gradient_of_the_table_is_summed_in_its_dtype():
    """Each of 4 devices rounds its part to 8 bits, and each of 3 sums rounds again: at most 7 halves of a unit."""
    exact = problem()
    rounded = exact._replace(x=jnp.bfloat16(exact.x), w=jnp.bfloat16(exact.w))
    widened = exact._replace(x=jnp.float32(rounded.x), w=jnp.float32(rounded.w))
    _, (_, expected) = with_gradients(plain, widened)
    cfg, mesh = mesh_of(4, data=4)
    table = ParamSpec((V, D), ("vocab", "embed"), "embedding", jax.nn.initializers.zeros)
    with jax.set_mesh(mesh):
        layout = sharding.layout(cfg, mesh, {"table": table})
        rows = jax.NamedSharding(mesh, layout.act("batch"))
        placed = Problem(
            jax.device_put(rounded.x, rows),
            jax.device_put(rounded.w, jax.NamedSharding(mesh, jax.P())),
            *(jax.device_put(array, rows) for array in rounded[2:]),
        )
        run = jax.jit(lambda *arrays: jax.grad(_mean_of_chunks(layout), 1)(*arrays))
        found = run(*placed)
        text = run.lower(*placed).as_text()
    assert found.dtype == jnp.bfloat16
    assert re.search(r'out_shardings=\[.*unreduced=\{"data"\}', text)  # summands, that what follows sums
    assert re.search(
        rf"%(\d+):3 = sdy.manual_computation(.|\n)*sharding_constraint %\1#2 .* : tensor<{V}x{D}xbf16>", text
    )
    np.testing.assert_allclose(np.float32(found), expected, rtol=0, atol=3.5 * 2.0**-8 * np.abs(expected).max())


def _mean_of_chunks(layout: Layout) -> Any:
    def mean(x, w, labels, weights):
        sums = chunked_cross_entropy(x, w, labels, weights, chunks=3, layout=layout)
        return sums.total / sums.weight

    return mean


def test_chunked_needs_less_memory_than_plain():
    """The plain loss and its backward pass hold at least two arrays of logits, 16 chunks one sixteenth of one."""
    shapes = ((2, 512, 16), jnp.float32), ((4096, 16), jnp.float32), ((2, 512), jnp.int32), ((2, 512), jnp.float32)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]

    def peak(loss) -> int:
        grad = jax.grad(lambda *arrays: loss(*arrays).total, argnums=(0, 1))
        return jax.jit(grad).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 2 * 512 * 4096
    assert peak(plain) > logits
    chunked = peak(lambda *arrays: chunked_cross_entropy(*arrays, chunks=16))
    assert chunked < 6 * logits / 16 and chunked < peak(plain) / 3


def test_mean_squared_error_equals_pytorch():
    torch = pytest.importorskip("torch", reason="parity with PyTorch's losses needs PyTorch")
    rng = np.random.default_rng(0)
    predictions, targets, weights = rng.standard_normal((3, 5, 7)).astype(np.float32)
    total, weight = mean_squared_error(predictions, targets, weights)
    per_entry = torch.nn.functional.mse_loss(torch.tensor(predictions), torch.tensor(targets), reduction="none")
    assert float(total) == pytest.approx((per_entry * torch.tensor(weights)).sum().item(), rel=2e-6, abs=1e-5)
    assert float(weight) == pytest.approx(weights.sum(), rel=1e-5, abs=1e-5)


def test_binary_log_loss_equals_pytorch():
    torch = pytest.importorskip("torch", reason="parity with PyTorch's losses needs PyTorch")
    rng = np.random.default_rng(0)
    logits, labels, weights = (4 * rng.standard_normal(40), rng.random(40), rng.random(40))
    total, weight = binary_log_loss(*(jnp.float32(x) for x in (logits, labels, weights)))
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(labels), torch.tensor(weights), reduction="sum"
    )
    assert float(total) == pytest.approx(theirs.item(), rel=2e-6)
    assert float(weight) == pytest.approx(weights.sum(), rel=2e-6)


@pytest.mark.parametrize(
    ("logit", "label", "expected"),
    # -log p(label) with p = 1 / (1 + exp(-logit)): |logit| when far on the wrong side, exp(-|logit|) on the right one.
    [
        (0.0, 1, np.log(2)),
        (-1e4, 1, 1e4),
        (1e4, 0, 1e4),
        (1e4, 1, 0.0),
        (-80.0, 0, np.exp(-80.0)),
        (20.0, 1, np.exp(-20.0)),
    ],
)
def test_binary_log_loss_of_extreme_logits(logit, label, expected):
    """On the right side `softplus(x) - x` cancels: exact to a rounding of x, not of the loss."""
    total, _ = binary_log_loss(jnp.float32(logit), jnp.float32(label), jnp.float32(1))
    rounding = 2.0**-22 * abs(logit) if label and logit > 0 else 0.0
    assert float(total) == pytest.approx(expected, rel=1e-6, abs=rounding)
    grad = jax.grad(lambda x: binary_log_loss(x, jnp.float32(label), jnp.float32(1))[0])(jnp.float32(logit))
    assert float(grad) == pytest.approx(1 / (1 + np.exp(-np.clip(logit, -500, 500))) - label, abs=1e-7)
