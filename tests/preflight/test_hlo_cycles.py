"""The TPU compiler's own estimate of a step: read with loops counted, named by line, compared between two plans."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from bigjax.config import Config, replace
from bigjax.preflight.plan import comparison, devices, page
from bigjax.preflight.plan.compiled import Compiled, compile_and_read
from bigjax.preflight.plan.compiler import Outcome
from bigjax.preflight.plan.hlo import cycles
from bigjax.preflight.plan.hlo.cycles import Cost, Operation
from bigjax.preflight.plan.hlo.text import parse
from bigjax.preflight.plan.planner import Planner
from bigjax.preflight.plan.program import build
from tests.conftest import mesh_of
from tests.hlo_programs import read

TPU = """HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(bf16[4096,8]{1,0:T(8,128)})->bf16[4096,8]{1,0:T(8,128)}}

FileNames
1 "/somewhere/site-packages/jax/experimental/pallas/kernel.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=4 end_column=8}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%product (p: bf16[4096,8], q: bf16[4096,8]) -> bf16[4096,8] {
  %p = bf16[4096,8]{1,0:T(8,128)} parameter(0)
  %q = bf16[4096,8]{1,0:T(8,128)} parameter(1)
  ROOT %add.0 = bf16[4096,8]{1,0:T(8,128)} add(%p, %q), metadata={op_name="jit(train_step)/jvp()/add" stack_frame_id=1}
}

%looked_up (p.1: bf16[4096,8], q.1: s32[4096]) -> bf16[4096,8] {
  %p.1 = bf16[4096,8]{1,0:T(8,128)} parameter(0)
  %q.1 = s32[4096]{0:T(1024)} parameter(1)
  ROOT %gather.0 = bf16[4096,8]{1,0:T(8,128)} gather(%p.1, %q.1), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,8}
}

%body (s: (s32[], bf16[4096,8])) -> (s32[], bf16[4096,8]) {
  %s = (s32[]{:T(128)}, bf16[4096,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = bf16[4096,8]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %fusion.1 = bf16[4096,8]{1,0:T(8,128)} fusion(%x, %x), kind=kOutput, calls=%product, metadata={op_name="jit(train_step)/transpose(jvp())/while/body/closed_call/checkpoint/rematted_computation/BSD,DF->BSF/dot_general" source_file="/home/me/blocks.py" source_line=189}, backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"700"}}
  %fusion.2 = bf16[4096,8]{1,0:T(8,128)} fusion(%fusion.1, %x), kind=kLoop, calls=%product, metadata={op_name="jit(train_step)/transpose(jvp())/while/body/closed_call/checkpoint/BSD,DF->BSF/dot_general" source_file="/home/me/blocks.py" source_line=189}, backend_config={"window_config":{"estimated_cycles":"1100"}}
  %fusion.3 = bf16[4096,8]{1,0:T(8,128)} fusion(%fusion.2, %x), kind=kLoop, calls=%product, metadata={op_name="jit(train_step)/transpose(jvp())/while/body/closed_call/checkpoint/BSD,DF->BSF/dot_general" source_file="/home/me/blocks.py" source_line=189}, backend_config={"window_config":{"estimated_cycles":"200"}}
  %kernel.1 = bf16[4096,8]{1,0:T(8,128)} custom-call(%fusion.3), custom_call_target="tpu_custom_call", metadata={op_name="jit(train_step)/jvp()/pallas_call" stack_frame_id=1}
  %sum = bf16[4096,8]{1,0:T(8,128)} all-reduce(%kernel.1), channel_id=1, replica_groups={}, to_apply=%product
  ROOT %state = (s32[]{:T(128)}, bf16[4096,8]{1,0:T(8,128)}) tuple(%next, %sum)
}

%condition (s.1: (s32[], bf16[4096,8])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, bf16[4096,8]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %layers = s32[]{:T(128)} constant(32)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %layers), direction=LT
}

ENTRY %main (x.0: bf16[4096,8], ids: s32[4096]) -> bf16[4096,8] {
  %x.0 = bf16[4096,8]{1,0:T(8,128)} parameter(0)
  %ids = s32[4096]{0:T(1024)} parameter(1)
  %first = s32[]{:T(128)} constant(0)
  %rows = bf16[4096,8]{1,0:T(8,128)} fusion(%x.0, %ids), kind=kCustom, calls=%looked_up, metadata={op_name="jit(train_step)/jvp()/gather" stack_frame_id=1}
  %fusion.4 = bf16[4096,8]{1,0:T(8,128)} fusion(%rows, %x.0), kind=kLoop, calls=%product, backend_config={"window_config":{"estimated_cycles":"50"}}
  %before = (s32[]{:T(128)}, bf16[4096,8]{1,0:T(8,128)}) tuple(%first, %fusion.4)
  %loop = (s32[]{:T(128)}, bf16[4096,8]{1,0:T(8,128)}) while(%before), condition=%condition, body=%body
  %x.9 = bf16[4096,8]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %copy.1 = bf16[4096,8]{1,0:T(8,128)} copy(%x.9), backend_config={"window_config":{"estimated_cycles":"3"}}
  ROOT %fusion.5 = bf16[4096,8]{1,0:T(8,128)} fusion(%copy.1, %x.9), kind=kLoop, calls=%product, metadata={op_name="jit(train_step)/mul" source_file="/home/me/step.py" source_line=5}, backend_config={"window_config":{"estimated_cycles":"9"}}
}
"""  # noqa: E501
"""In the form of what libtpu 0.0.42.1 makes of a step on `v5p:4x4x8`: a loop of 32 layers, a kernel, a look-up."""


def test_cycles_count_as_often_as_loops_run_and_are_named_by_line():
    cost = cycles.cost(parse(TPU))
    assert cost.cycles == 32 * (700 + 1100 + 200) + 50 + 3 + 9
    product = "BSD,DF->BSF/dot_general"
    assert cost.operations == (
        Operation("backward", product, "blocks.py:189", 64, 32 * 1300),
        Operation("recompute", product, "blocks.py:189", 32, 32 * 700),
        # A fusion without a name of its own has that of what it holds.
        Operation("forward", "add", "jax/experimental/pallas/kernel.py:7", 1, 50),
        Operation("update", "mul", "step.py:5", 1, 9),
        Operation("other", "copy", "", 1, 3),
    )
    assert cost.not_counted == {"kernel": 32, "gather": 1}


def test_what_the_compiler_cannot_estimate_is_named():
    # libtpu 0.0.52 writes the largest integer for a look-up that it hands to a core of its own.
    unknown = f', backend_config={{"window_config":{{"estimated_cycles":"{2**63 - 1}"}}}}'
    text = TPU.replace('op_name="jit(train_step)/jvp()/gather" stack_frame_id=1}', f"}}{unknown}")
    assert text != TPU
    assert cycles.cost(parse(text)) == cycles.cost(parse(TPU))
    handed_over = TPU.replace("transpose(jvp())/while", "").replace("jvp()/pallas_call", "jvp()/gather")
    assert cycles.cost(parse(handed_over)).not_counted == {"gather": 33}


def test_a_compiler_that_states_no_cycles_has_none():
    assert cycles.cost(read(jnp.matmul, (64, 64), (64, 64))) == Cost(None, (), {})


@pytest.fixture(scope="module")
def planned():
    """Return a plan for a TPU whose compiled step is given: this machine's program with other cycles."""
    mesh_cfg, mesh = mesh_of(2, data=1, fsdp=2)
    cfg = replace(Config(), mesh=vars(mesh_cfg), train={"global_batch_size": 4}, data={"seq_len": 32})
    cfg = replace(cfg, model={"d_model": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 128})
    _, found = compile_and_read(build(cfg, mesh).trace().lower(), dict(mesh.shape))
    planner = Planner(devices.parse("v5e:1x2"), "tiny")

    def judge(cost: Cost):
        stored = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(found, cost=cost))))
        return planner.judge(cfg, Outcome(compiled=Compiled.from_dict(stored)))

    return judge


def test_the_plan_says_what_the_compiler_expects(planned):
    report = planned(cycles.cost(parse(TPU)))
    assert report["compiler_cycles_per_step"] == 64062
    assert report["operations"][0]["cycles"] == 41600 and report["cycles_not_counted"] == {"kernel": 32, "gather": 1}
    sent = {row["kind"]: 0 for row in report["collectives"]}
    for row in report["collectives"]:
        sent[row["kind"]] += row["bytes_per_chip"]
    assert report["sent_bytes_per_chip"] == sent and report["async_share"] == 0
    assert report["hbm_bytes_accessed_per_chip"] > report["params_bytes_per_chip"]
    text = page.render(report)
    assert (
        "cycles per step [the compiler's estimate]: 0.1 million: 4.271e-05 s, and no step is faster" in text
    )  # at 1.5 GHz
    assert min(report["step_seconds_estimate"].values()) >= report["compiler_seconds_per_step"] == 64062 / 1.5e9
    assert "not counted: kernel x32, gather x1, waits for the 100% of the traffic that nothing hides" in text
    assert "64.9%  backward   BSD,DF->BSF/dot_general" in text and "blocks.py:189" in text
    silent = planned(Cost(None, (), {}))
    assert silent["compiler_cycles_per_step"] is None and "cycles per step" not in page.render(silent)


def test_two_plans_differ_by_operation(planned):
    cost = cycles.cost(parse(TPU))
    slower = cycles.cost(parse(TPU.replace('"700"', '"750"').replace('"9"', '"8"')))
    a, b = planned(cost), planned(slower)
    rows = comparison.difference(a, b)
    assert rows is not None
    assert [(row["phase"], *row["cycles"]) for row in rows[:3]] == [
        ("recompute", 22400, 24000), ("update", 9, 8), ("backward", 41600, 41600),
    ]  # fmt: skip
    shown = comparison.beside(a, b)
    assert "million cycles by operation, the largest differences first" in shown
    row = next(line for line in shown.splitlines() if line.startswith("compiler_cycles_per_step"))
    assert float(row.split()[-1]) == round(65661 / 64062, 3)
    assert "backward" not in shown and "every operation costs as many cycles in both" in comparison.beside(a, a)
    assert comparison.difference(a, planned(Cost(None, (), {}))) is None
