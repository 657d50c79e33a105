"""Traffic equals closed forms; groups map to mesh axes; collectives of every compiler are recognised."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from bigjax.preflight.plan.hlo import costs as hlo
from bigjax.preflight.plan.traffic import Collective
from tests.hlo_programs import F32, mesh_of, read


def test_data_parallel_gradients_are_summed_once():
    mesh = mesh_of(data=8)
    shapes, rows = [(16, 64), (64, 8)], 32

    def loss(w1, w2, x):
        return jnp.sum(jnp.tanh(x @ w1) @ w2)

    specs = [jax.P(), jax.P(), jax.P("data")]
    module = read(jax.grad(loss, (0, 1)), *shapes, (rows, 16), mesh=mesh, specs=specs, out=(jax.P(), jax.P()))
    (found,) = hlo.collectives(module, dict(mesh.shape))
    parameters = 16 * 64 + 64 * 8
    assert (found.kind, found.mesh_axes) == ("all-reduce", ("data",))
    assert found.bytes_per_chip == 2 * parameters * F32 * 7 // 8
    assert found.overlapped_bytes_per_chip == 0


def test_fully_sharded_layers_pass_three_times_in_a_loop():
    mesh, layers, width = mesh_of(fsdp=8), 5, 32

    @partial(jax.shard_map, mesh=mesh, in_specs=(jax.P(None, "fsdp"), jax.P("fsdp")), out_specs=jax.P(None, "fsdp"))
    def gradient(w, x):
        @jax.checkpoint
        def layer(x, w):
            return jnp.tanh(x @ lax.all_gather(w, "fsdp", tiled=True)), None

        return jax.grad(lambda w: jnp.sum(lax.scan(layer, x, w)[0]))(w)

    module = read(gradient, (layers, width, width), (16, width), mesh=mesh, specs=[jax.P(None, "fsdp"), jax.P("fsdp")])
    one_pass = layers * width * width * F32 * 7 // 8
    assert hlo.collectives(module, {"data": 1, "fsdp": 8}) == [
        Collective("all-gather", ("fsdp",), 2 * layers, 2 * one_pass),
        Collective("reduce-scatter", ("fsdp",), layers, one_pass),
    ]
    # Forward, forward again, and two products backward, of 2 rows on each device.
    assert hlo.flops(module) == layers * 4 * 2 * 2 * width**2


def test_tensor_parallel_layers_sum_activations_forward_and_backward():
    mesh, rows, width, hidden = mesh_of(tensor=4, data=2), 8, 16, 64

    def loss(x, w1, w2):
        return jnp.sum(jnp.sin(jnp.tanh(x @ w1) @ w2))

    specs = [jax.P("data"), jax.P(None, "tensor"), jax.P("tensor", None)]
    shapes = [(rows, width), (width, hidden), (hidden, width)]
    module = read(jax.grad(loss), *shapes, mesh=mesh, specs=specs, out=jax.P("data"))
    (found,) = hlo.collectives(module, dict(mesh.shape))
    assert (found.kind, found.mesh_axes, found.count) == ("all-reduce", ("tensor",), 2)
    assert found.bytes_per_chip == 2 * (2 * rows // 2 * width * F32 * 3 // 4)
    assert hlo.flops(module) == 4 * 2 * (rows // 2) * width * (hidden // 4)


def test_groups_map_to_every_set_of_axes():
    mesh = mesh_of(a=2, b=2, c=2)
    subsets = [axes for n in (1, 2, 3) for axes in combinations("abc", n)]

    @partial(jax.shard_map, mesh=mesh, in_specs=jax.P(("a", "b", "c")), out_specs=jax.P(("a", "b", "c")))
    def chain(x):
        for axes in subsets:
            x = jnp.sin(lax.pcast(lax.psum(x, axes), axes, to="varying"))
        x = lax.ppermute(x, "b", [(0, 1), (1, 0)])
        return lax.all_to_all(x, "a", 0, 0, tiled=True)

    found = hlo.collectives(read(chain, (64,), mesh=mesh, specs=[jax.P(("a", "b", "c"))]), dict(mesh.shape))
    size = 8 * F32
    assert found == [
        *[Collective("all-reduce", axes, 1, 2 * size - 2 * size // 2 ** len(axes)) for axes in sorted(subsets)],
        Collective("all-to-all", ("a",), 1, size // 2),
        Collective("collective-permute", ("b",), 1, size),
    ]


ALL_REDUCE = """HloModule jit_f, is_scheduled=true, num_partitions=8

ENTRY %main (p: f32[64]) -> f32[64] {{
  %p = f32[64]{{0}} parameter(0)
  ROOT %r = f32[64]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add
}}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{}", ("a", "b", "c")),
        ("{{0,1,2,3,4,5,6,7}}", ("a", "b", "c")),
        ("{{0,1},{2,3},{4,5},{6,7}}", ("c",)),
        ("{{0,2},{1,3},{4,6},{5,7}}", ("b",)),
        ("{{0,5},{1,4},{2,7},{3,6}}", ("?",)),
        ("{{0,1,2},{3,4,5},{6,7}}", ("?",)),
        ("{{0,1},{2,3}}", ("c",)),  # one slice of a program for two
        ("[4,2]<=[8]", ("c",)),
        ("[2,4]<=[8]", ("b", "c")),
        ("[4,2]<=[4,2]T(1,0)", ("b",)),
        ("[2,4]<=[4,2]T(1,0)", ("a", "b")),
        ("[4,2]<=[2,4]T(1,0)", ("a",)),
        ("[2,4]<=[2,2,2]T(1,0,2)", ("a", "c")),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("b",)),
        ("mesh['x'=4,'y'=2] {'x'}", ("a", "b")),
        ("mesh['x'=4,'y'=2] {'y'}", ("c",)),
        ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", ("a", "b")),
        ("mesh['x'=2,'y'=1,'z'=4] {'x','y','z'}", ("a", "b", "c")),
        ("mesh['x'=8] {'x':(2)2}", ("b",)),
        ("mesh['x'=8] {'x':(1)2, 'x':(4)2}", ("a", "c")),
    ],
)
def test_groups_of_every_form(groups, axes):
    module = hlo.parse(ALL_REDUCE.format(groups=groups))
    (found,) = hlo.collectives(module, {"a": 2, "one": 1, "b": 2, "c": 2})
    assert found.mesh_axes == axes


def test_groups_of_one_device_send_nothing():
    module = hlo.parse(ALL_REDUCE.format(groups="{{0},{1},{2},{3},{4},{5},{6},{7}}"))
    assert hlo.collectives(module, {"a": 8}) == []


def test_groups_of_an_unknown_form_are_an_error():
    with pytest.raises(ValueError, match="cannot read the device groups"):
        hlo.collectives(hlo.parse(ALL_REDUCE.format(groups="<8 strided>")), {"a": 8})


GPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

FileNames
1 "/somewhere/lib/python3.11/site-packages/optax/_src/update.py"
2 "/home/me/mine.py"

FunctionNames
1 "update"

FileLocations
1 {file_name_id=1 function_name_id=1 line=28 end_line=28 column=8 end_column=44}
2 {file_name_id=2 function_name_id=1 line=5 end_line=5 column=8 end_column=44}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%wrapped (q: f32[64,512]) -> f32[16,512] {
  %q = f32[64,512]{1,0} parameter(0)
  ROOT %rs = f32[16,512]{1,0} reduce-scatter(%q), channel_id=9, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
}

ENTRY %main (p0: f32[64,512], p1: f32[64,64]) -> f32[256,512] {
  %p0 = f32[64,512]{1,0} parameter(0)
  %p1 = f32[64,64]{1,0} parameter(1)
  %ag = ((f32[64,512]{1,0}, f32[64,64]{1,0}), (f32[256,512]{1,0}, /*index=5*/f32[256,64]{1,0})) all-gather-start(%p0, %p1), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}, metadata={op_name="a, calls=%nothing" stack_frame_id=1}, backend_config={"collective_backend_config":{"is_sync":false}}
  %gemm = (f32[64,512]{1,0}, s8[64]{0}) custom-call(%p1, %p0), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/dot_general" stack_frame_id=2}, backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %done = (f32[256,512]{1,0}, f32[256,64]{1,0}) all-gather-done(%ag)
  %product = f32[64,512]{1,0} get-tuple-element(%gemm), index=0
  %scatter = ((f32[64,512]{1,0}), f32[16,512]{1,0}, s32[]) async-start(%product), calls=%wrapped
  %after = f32[16,512]{1,0} async-done(%scatter)
  %sync = f32[64,512]{1,0} all-reduce-start(%product), channel_id=2, replica_groups=[4,2]<=[8], to_apply=%add, backend_config={"collective_backend_config":{"is_sync":true}}
  %call = f32[2]{0} custom-call(%p1), custom_call_target="__gpu$xla.gpu.triton"
  %reduced = f32[64,512]{1,0} all-reduce-done(%sync)
  ROOT %gathered = f32[256,512]{1,0} get-tuple-element(%done), index=0
}
"""  # noqa: E501


def test_asynchronous_collectives_of_a_gpu():
    module = hlo.parse(GPU)
    gathered, scattered, reduced = 256 * (512 + 64) * F32 * 3 // 4, 64 * 512 * F32 * 3 // 4, 64 * 512 * F32
    assert hlo.collectives(module, {"fsdp": 4, "tensor": 2}) == [
        Collective("all-gather", ("fsdp",), 1, gathered, gathered),
        Collective("reduce-scatter", ("fsdp",), 1, scattered, 0),
        Collective("all-reduce", ("tensor",), 1, reduced, 0),
    ]
    assert hlo.flops(module) == 2 * 64 * 512 * 64
    assert module.uncounted_calls == ("call (__gpu$xla.gpu.triton)",)
    largest, second = hlo.largest_buffers(module, limit=2)
    assert (largest.name, largest.bytes, largest.source) == ("ag{0}", 256 * 512 * F32, "mine.py:5")
    assert {second.name, *[b.name for b in hlo.largest_buffers(module)]} >= {"gemm{0}", "p0", "p1", "ag{1}"}
    assert {b.source for b in hlo.largest_buffers(module) if b.name == "gemm{0}"} == {"optax/_src/update.py:28"}


TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%start (p: bf16[1,64,256]) -> (bf16[1,64,256], bf16[1,256,256], u32[]) {
  %p = bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %ag.1 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=70, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={1}
  ROOT %c.1 = (bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (a: bf16[1,64,256], b: bf16[1,256,256], x: bf16[4,2,256,64], w: bf16[4,2,256,64]) -> (f32[4,2,256,256], bf16[1,256,256]) {
  %a = bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %x = bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)} parameter(2)
  %w = bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)} parameter(3)
  %conv = f32[4,2,256,256]{3,2,1,0:T(8,128)} convolution(%x, %w), window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=01bf_01oi->01bf
  %ag.2 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%a), channel_id=70, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={1}
  ROOT %t = (f32[4,2,256,256]{3,2,1,0:T(8,128)}, bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)}) tuple(%conv, %ag.2)
}

%end (a.1: bf16[1,64,256], b.1: bf16[1,256,256]) -> bf16[1,256,256] {
  %a.1 = bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b.1 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %ag.3 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)} all-gather(%a.1), channel_id=70, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={1}
  ROOT %c.2 = bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%a.1, %b.1, %ag.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.6 (g: f32[256,512]) -> f32[64,512] {
  %g = f32[256,512]{1,0:T(8,128)} parameter(0)
  %ar = f32[256,512]{1,0:T(8,128)} all-reduce(%g), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %ds = f32[64,512]{1,0:T(8,128)} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={64,512}
}

%body (s: (s32[], bf16[1,64,256], bf16[4,2,256,64], f32[256,512])) -> (s32[], bf16[1,64,256], bf16[4,2,256,64], f32[256,512]) {
  %s = (s32[]{:T(128)}, bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)}, f32[256,512]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %w.1 = bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%s), index=1
  %x.1 = bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%s), index=2
  %g.1 = f32[256,512]{1,0:T(8,128)} get-tuple-element(%s), index=3
  %one = s32[]{:T(128)} constant(1)
  %add.1 = s32[]{:T(128)} add(%i, %one)
  %started = (bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) fusion(%w.1), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%start
  %part = bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%started), index=0
  %room = bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%started), index=1
  %work = (f32[4,2,256,256]{3,2,1,0:T(8,128)}, bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)}) fusion(%part, %room, %x.1, %x.1), kind=kOutput, calls=%async_collective_fusion.1
  %ended = bf16[1,256,256]{2,1,0:T(8,128)(2,1)S(1)} fusion(%part, %room), kind=kCustom, calls=%end
  %scattered = f32[64,512]{1,0:T(8,128)} fusion(%g.1), kind=kCustom, calls=%all-reduce-scatter.6
  %kernel = f32[8,128]{1,0:T(8,128)} custom-call(%x.1), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="pallas_call"}
  ROOT %next = (s32[]{:T(128)}, bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)}, f32[256,512]{1,0:T(8,128)}) tuple(%add.1, %w.1, %x.1, %g.1)
}

%condition (s.1: (s32[], bf16[1,64,256], bf16[4,2,256,64], f32[256,512])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)}, f32[256,512]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %three), direction=LT
}

ENTRY %main (w: bf16[1,64,256], x: bf16[4,2,256,64], g: f32[256,512]) -> f32[256,512] {
  %w.2 = bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %x.2 = bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %g.2 = f32[256,512]{1,0:T(8,128)} parameter(2)
  %first = s32[]{:T(128)} constant(0)
  %state = (s32[]{:T(128)}, bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)}, f32[256,512]{1,0:T(8,128)}) tuple(%first, %w.2, %x.2, %g.2)
  %loop = (s32[]{:T(128)}, bf16[1,64,256]{2,1,0:T(8,128)(2,1)S(1)}, bf16[4,2,256,64]{3,2,1,0:T(8,128)(2,1)}, f32[256,512]{1,0:T(8,128)}) while(%state), condition=%condition, body=%body
  %token = token[] after-all()
  %send = (f32[256,512]{1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%g.2, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  ROOT %out = f32[256,512]{1,0:T(8,128)} get-tuple-element(%loop), index=3
}
"""  # noqa: E501
"""Parts of what libtpu 0.0.50 made of a step on `v5e:2x4`, put together."""


def test_collective_fusions_of_a_tpu():
    module = hlo.parse(TPU)
    assert module.trip_counts == {"loop": 3}
    gathered = 3 * 256 * 256 * 2 * 3 // 4
    assert hlo.collectives(module, {"slice": 2, "fsdp": 4, "tensor": 2}) == [
        Collective("all-gather", ("fsdp",), 3, gathered, gathered),
        Collective("reduce-scatter", ("fsdp",), 3, 3 * 256 * 512 * F32 * 3 // 4),
        Collective("all-reduce", ("slice",), 1, 256 * 512 * F32),
    ]
    # The window walks over 4 x 2 batch entries: each meets its own entry of the input, and holes otherwise.
    assert hlo.flops(module) == 3 * 2 * 4 * 2 * 256 * 256 * 64
    assert module.uncounted_calls == ("kernel (tpu_custom_call)",)
    assert [b.name for b in hlo.largest_buffers(module, limit=2)] == ["work{0}", "g.2"]
