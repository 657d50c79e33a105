"""What the reader of compiled programs counts, against closed forms and texts of three compilers."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.preflight.plan.hlo import costs as hlo
from bigjax.train import step
from tests.hlo_programs import F32, read
from tests.on_meshes import program, random_batch


def test_operations_of_products():
    assert hlo.flops(read(jnp.matmul, (6, 5), (5, 7))) == 2 * 6 * 5 * 7
    assert hlo.flops(read(partial(jnp.einsum, "bhsk,bhtk->bhst"), (2, 3, 8, 4), (2, 3, 5, 4))) == 2 * 2 * 3 * 8 * 5 * 4


def test_operations_of_loops():
    def scan(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def nested(w, x):
        return lax.fori_loop(2, 6, lambda _, x: scan(w, x), x)

    one = 2 * 4 * 16 * 16
    assert hlo.flops(read(scan, (7, 16, 16), (4, 16))) == 7 * one
    module = read(nested, (7, 16, 16), (4, 16))
    assert hlo.flops(module) == 4 * 7 * one
    assert sorted(module.trip_counts.values()) == [4, 7]
    assert module.unknown_trip_counts == ()


def test_a_loop_that_depends_on_data_counts_once_and_is_named():
    def until_small(x):
        return lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x @ x, x)

    module = read(until_small, (8, 8))
    assert hlo.flops(module) == 2 * 8**3
    assert len(module.unknown_trip_counts) == 1


def test_a_gradient_takes_three_times_the_operations():
    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    shapes = [(16, 64), (64, 8)]
    module = read(lambda w1, w2, x: jax.grad(loss, (0, 1))((w1, w2), x), *shapes, (10, 16))
    assert hlo.flops(module) == 3 * sum(2 * 10 * m * n for m, n in shapes)


def test_the_largest_branch_counts():
    def branch(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x + 1, x)

    assert hlo.flops(read(branch, (8, 8))) == 2 * 2 * 8**3


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_counts_what_meets_the_image(groups):
    def conv(x, kernel):
        labels = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=labels, feature_group_count=groups)

    module = read(conv, (2, 10, 10, 4), (3, 3, 4 // groups, 6))
    # Of the 3 x 10 pairs of a kernel and an output position of an axis, 2 lie in the padding.
    assert hlo.flops(module) == 2 * 2 * (3 * 10 - 2) ** 2 * (4 // groups) * 6


def test_a_convolution_of_groups_of_rows():
    def conv(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1,), "VALID", batch_group_count=2, dimension_numbers=("NWC", "WIO", "NWC")
        )

    text = jax.jit(conv).lower(*(jnp.zeros(shape) for shape in [(4, 10, 3), (3, 3, 6)])).as_text("hlo")
    # The output has 2 rows of 8 positions and 6 features, each a sum over 3 positions and 3 features.
    assert hlo.flops(hlo.parse(text)) == 2 * 2 * 8 * 6 * 3 * 3


def test_a_training_step_takes_six_operations_for_each_weight_and_token():
    rows, length, width, layers, vocab = 16, 32, 64, 3, 520
    cfg = Config(
        model=ModelConfig(
            vocab_size=vocab, num_layers=layers, d_model=width, num_heads=4, max_seq_len=length, tie_embeddings=False
        ),
        data=DataConfig(seq_len=length),
        train=TrainConfig(global_batch_size=rows, steps=5),
    )
    run = program(cfg, "data 2, fsdp 2, tensor 2", optax.identity())
    with jax.set_mesh(run.mesh):
        state = step.abstract_state(cfg, run.model, run.tx, run.layout, run.mesh)
        batch = random_batch(cfg)
        placed = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding)
            for (name, x), y in zip(batch.items(), run.place(cfg).values(), strict=True)
        }
        module = hlo.parse(run.step.lower(state, placed).compile().as_text())
    weights = layers * 12 * width**2 + vocab * width
    scores = layers * 2 * length * width  # of each token with every position, and the values they weigh
    assert hlo.flops(module) == 6 * rows * length * (weights + scores) // 8
    assert module.unknown_trip_counts == module.uncounted_calls == ()
    axes = {c.mesh_axes for c in hlo.collectives(module, dict(run.mesh.shape))}
    assert ("tensor",) in axes
    assert ("fsdp",) in axes
    assert ("?",) not in axes


def test_bytes_of_whole_arrays():
    assert hlo.bytes_accessed(read(lambda x, y: jnp.sin(x) * y, (512, 64), (512, 64))) == 3 * 512 * 64 * F32
    assert hlo.bytes_accessed(read(jnp.matmul, (64, 32), (32, 16))) == (64 * 32 + 32 * 16 + 64 * 16) * F32


SLICES = """HloModule jit_f, is_scheduled=true

%fused (p0: f32[10,64], p1: s32[], p2: f32[64]) -> f32[10,64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[64]{0} parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%row)
  %sum = f32[64]{0} add(%flat, %p2)
  %new = f32[1,64]{1,0} bitcast(%sum)
  ROOT %out = f32[10,64]{1,0} dynamic-update-slice(%p0, %new, %p1, %zero)
}

ENTRY %main (x: f32[10,64], i: s32[], y: f32[64]) -> f32[10,64] {
  %x = f32[10,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %y = f32[64]{0} parameter(2)
  ROOT %f = f32[10,64]{1,0} fusion(%x, %i, %y), kind=kLoop, calls=%fused
}
"""


def test_bytes_of_slices_count_the_slice():
    # A row read, a row written, the vector and the index; the index is read by both slices but is one array.
    assert hlo.bytes_accessed(hlo.parse(SLICES)) == 3 * 64 * F32 + 4


def test_a_loop_reads_each_layer_once():
    layers, width = 50, 64

    def scan(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    weights = layers * width**2 * F32
    # The slice is copied before the product: written once and read twice.
    assert weights <= hlo.bytes_accessed(read(scan, (layers, width, width), (1, width))) < 3.2 * weights


def doubled(x, w1, w2):
    wide = x @ w1
    return jnp.tanh(wide) @ w2


def test_the_largest_array_is_named_with_its_line():
    buffers = hlo.largest_buffers(read(doubled, (256, 4), (4, 1024), (1024, 4)), limit=3)
    line = inspect.getsourcelines(doubled)[1]
    assert (buffers[0].shape, buffers[0].dtype, buffers[0].bytes) == ((256, 1024), "f32", 256 * 1024 * F32)
    assert buffers[0].source in (f"tests/preflight/test_hlo.py:{line + 1}", f"tests/preflight/test_hlo.py:{line + 2}")
    assert "dot_general" in buffers[0].op_name or "tanh" in buffers[0].op_name
    assert len(buffers) == 3


def test_what_a_loop_keeps_for_the_backward_pass_is_named():
    def layer(x, w):
        return jnp.tanh(x @ w), None

    module = read(jax.grad(lambda w, x: jnp.sum(lax.scan(layer, x, w)[0])), (6, 32, 32), (128, 32))
    kept = next(b for b in hlo.largest_buffers(module) if b.shape == (6, 128, 32))
    assert kept.bytes == 6 * 128 * 32 * F32
    assert kept.source.startswith("tests/preflight/test_hlo.py:")


ATTENTION = """HloModule jit_f, is_scheduled=true

ENTRY %main (q: bf16[2,256,4,64], k: bf16[2,512,4,64]) -> bf16[2,4,256,64] {
  %q = bf16[2,256,4,64]{3,2,1,0} parameter(0)
  %k = bf16[2,512,4,64]{3,2,1,0} parameter(1)
  %f = (bf16[2,4,256,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="TARGET", backend_config={"cudnn_fmha_backend_config":{"fmha_scale":0.1,"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","4","256","512"],"layout":{"minor_to_major":["3"]}}}}
  ROOT %o = bf16[2,4,256,64]{3,1,2,0} get-tuple-element(%f), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize(("target", "products"), [("__cudnn$fmhaSoftmax", 4), ("__cudnn$fmhaSoftmaxBackward", 10)])
def test_operations_of_fused_attention(target, products):
    assert hlo.flops(hlo.parse(ATTENTION.replace("TARGET", target))) == products * 2 * 4 * 256 * 512 * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not start with"),
        ("module @jit_f {}", "does not start with"),
        ("HloModule jit_f", "no ENTRY"),
        (SLICES[: SLICES.rindex("  ROOT ")], "main has no end"),
        (SLICES.replace("dynamic-slice(%p0, %p1, %zero)", "???"), "line 8 of the HLO text is not an instruction"),
        (SLICES.replace("f32[10,64]{1,0} fusion(%x", "f32[10,64]{1,0} fusion(%nowhere"), "uses nowhere, not defined"),
        (SLICES.replace("calls=%fused", "calls=%other"), "calls other, which the text does not define"),
        ("HloModule m\n\nENTRY %m (p: f32[]) -> f32[] {\n}\n", "m has no instruction"),
    ],
)
def test_what_is_not_a_program_is_an_error(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        hlo.parse(text)
    assert "\n" not in str(raised.value)


def test_types_have_their_sizes():
    text = "HloModule m\n\nENTRY %m (p: f32[]) -> f32[] {\n  ROOT %p = TYPE[3,5] parameter(0)\n}\n"
    sizes = {"pred": 15, "s4": 8, "bf16": 30, "f8e4m3fn": 15, "u64": 120, "c64": 120, "f32": 60}
    found = {dtype: hlo.largest_buffers(hlo.parse(text.replace("TYPE", dtype)))[0].bytes for dtype in sizes}
    assert found == sizes
    assert found["f32"] == np.zeros((3, 5), np.float32).nbytes
