"""What the plan takes from the compiler: memory equals the live arrays, and no fate of the compiler ends the plan."""

import dataclasses
import importlib.util
import os
import stat
import subprocess
import sys

import jax
import numpy as np
import pytest

from bigjax import sharding
from bigjax.config import Config, replace
from bigjax.preflight.plan import compiler, devices, links, program, report
from bigjax.preflight.plan.compiled import compile_and_read
from bigjax.preflight.plan.planner import Planner, exit_code
from bigjax.preflight.plan.traffic import Collective
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests.conftest import mesh_of

CFG = replace(
    Config(),
    model={"d_model": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 128},
    data={"seq_len": 32},
    train={"global_batch_size": 16},
)


@pytest.mark.sample
@pytest.mark.parametrize(
    ("num_devices", "axes"),
    [(1, {}), (2, {"fsdp": 2}), (4, {"fsdp": 2, "tensor": 2}), (8, {"data": 2, "fsdp": 2, "tensor": 2})],
)
def test_memory_is_that_of_the_live_arrays(num_devices, axes):
    mesh_cfg, mesh = mesh_of(num_devices, **({"data": 1} | axes))
    cfg = replace(CFG, mesh=vars(mesh_cfg))
    built = program.build(cfg, mesh)
    _, found = compile_and_read(built.trace().lower(), dict(mesh.shape))
    with jax.set_mesh(mesh):
        tx = optim.build(cfg.optim, built.model.specs, cfg.train.steps)
        state = step.jit_init_state(cfg, built.model, tx, built.layout)()
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in built.batch.items()}
    live = (state, sharding.put_batch(batch, mesh, cfg.train.global_batch_size))

    def held(tree) -> int:
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    # What the compiler counts twice to keep a buffer aligned is less than 64 bytes for each array.
    slack = 64 * len(jax.tree.leaves(live))
    assert 0 <= found.argument_bytes - held(live) <= slack
    assert 0 <= found.alias_bytes - held(state) <= slack
    assert report.state_bytes(built.state.params) == held(state.params)
    assert report.state_bytes(built.state.opt_state) == held(state.opt_state)
    analysed = built.trace().lower().compile().memory_analysis()
    total = analysed.argument_size_in_bytes + analysed.output_size_in_bytes - analysed.alias_size_in_bytes
    total += analysed.temp_size_in_bytes + analysed.generated_code_size_in_bytes
    assert found.needed_bytes == total


def test_what_the_compiler_pads_is_named():
    mesh_cfg, mesh = mesh_of(8, data=1, fsdp=2, tensor=4)
    built = program.build(replace(CFG, mesh=vars(mesh_cfg)), mesh)
    _, found = compile_and_read(built.trace().lower(), dict(mesh.shape))
    assert report.padding(built, found) == []
    arguments = {**found.arguments, "state.params['blocks']['attn']['q']": (2, 32, 2, 16), "batch['tokens']": (9, 32)}
    padded = dataclasses.replace(found, arguments=arguments)
    assert report.padding(built, padded) == [
        "state.params['blocks']['attn']['q']: axis 2 of size 4 over mesh.tensor=4 is padded: a device takes 2, "
        "an even share is 1",
        "batch['tokens']: axis 0 of size 16 over mesh.fsdp=2 is padded: a device takes 9, an even share is 8",
    ]
    planner = Planner(devices.parse("cpu:8"), "padded")
    for compiled, status in ((found, 0), (padded, 3)):
        judged = planner.judge(built.cfg, compiler.Outcome(compiled=compiled))
        assert exit_code(judged) == status


@pytest.fixture
def other_compiler(tmp_path, monkeypatch):
    """Put a shell script in the compiler's place."""

    def install(script: str) -> None:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(compiler.sys, "executable", str(path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    return install


def outcome_of(**bounds) -> compiler.Outcome:
    return compiler.start(CFG, devices.parse("cpu:1")).wait(**({"timeout_s": 60} | bounds))


@pytest.mark.parametrize(
    ("script", "bounds", "failure"),
    [
        ("cat > /dev/null; kill -FPE $$", {}, "the compiler crashed (SIGFPE)"),
        ("cat > /dev/null; echo noise >&2; echo 'no such pass' >&2; exit 1", {}, "the compiler failed: no such pass"),
        ("exec sleep 60", {"timeout_s": 0.3}, "the compiler was stopped after 0 s"),
        ("exec sleep 60", {"memory_bytes": 1}, "the compiler was stopped at 0.0 GiB of memory"),
        ("""cat > /dev/null; echo '{"error": "that is refused"}'""", {}, "that is refused"),
    ],
)
def test_every_fate_of_the_compiler_is_named(other_compiler, script, bounds, failure):
    other_compiler(script)
    outcome = outcome_of(**bounds)
    assert (outcome.failure, outcome.compiled, outcome.out_of_memory_bytes) == (failure, None, None)


def test_out_of_memory_is_a_result(other_compiler):
    other_compiler("""cat > /dev/null; echo '{"out_of_memory_bytes": 5, "versions": {}, "cached": false}'""")
    outcome = outcome_of()
    assert (outcome.out_of_memory_bytes, outcome.failure) == (5, None)


def test_a_slice_is_described_as_it_is_wired():
    """`wrap`, `chip_config_name` and host bounds of the same types in MaxText's `accelerator_to_spec_map.py`."""

    def asked(text: str, num_slices: int = 1) -> dict:
        return devices.libtpu_options(devices.parse(text, num_slices))

    torus = {"wrap": (True, True, True), "chip_config_name": "megacore"}
    assert asked("v4:4x4x4") == {"topology_name": "v4:4x4x4", **torus}
    assert asked("v5p:4x4x8", 2) == {"topology_name": "v5p:4x4x8", **torus, "num_slices": 2}
    assert asked("v5p:2x4x4") == {"topology_name": "v5p:2x4x4", **torus, "wrap": (False, False, False)}
    assert asked("v5e:16x16") == {"topology_name": "v5e:16x16", "wrap": (True, True, False)}
    assert asked("v6e:8x16") == {"topology_name": "v6e:8x16", "wrap": (False, True, False)}
    assert asked("tpu7x:4x4x4") == {"topology_name": "tpu7x:4x4x4", "wrap": (True, True, True)}
    alone = {"wrap": (False, False, False), "chips_per_host_bounds": (1, 1, 1)}
    assert asked("v6e:1x1") == {"topology_name": "v6e:1x1", **alone}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (extra plan-tpu) is not installed")
@pytest.mark.parametrize("text", ["v4:2x2x1", "v4:4x4x4", "v5p:4x4x8", "v5e:8x16", "v6e:1x1", "tpu7x:4x4x4"])
def test_the_compiler_knows_the_devices_of_a_slice(text):
    program = (
        "import sys; from bigjax.preflight.plan import devices; "
        "topology = devices.parse(sys.argv[1]); print(len(devices.of(topology)), topology.num_devices)"
    )
    environment = os.environ | devices.ENVIRONMENT["tpu"]
    command = (sys.executable, "-c", program, text)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found, expected = done.stdout.split()
    assert found == expected


def test_libtpu_refusals_are_read():
    # As printed by libtpu 0.0.50 for Llama 8B on v5e:16x16.
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (36.83G) exceeds available HBM (15.75G). HLO module: jit_train_step."
    )
    from bigjax.preflight.plan.compile_child import out_of_memory_bytes

    assert out_of_memory_bytes(said) == int(36.83 * 2**30)
    assert out_of_memory_bytes("INTERNAL: something else") is None


@pytest.mark.parametrize(
    ("axes", "within", "domains", "link"),
    [
        (("tensor",), 4, 1, "ici"),
        (("fsdp",), 2, 2, "ici+dcn"),
        (("data",), 1, 2, "dcn"),
        (("fsdp", "tensor"), 8, 2, "ici+dcn"),
    ],
)
def test_links_of_machines_with_8_devices(axes, within, domains, link):
    # Devices 0-15 lie on two machines; fsdp is 4 wide, of which 2 fit a machine beside tensor's 4.
    shape = {"data": 2, "fsdp": 4, "tensor": 4}
    lies = links.split(axes, shape, 8)
    assert (lies.within, lies.domains, lies.link) == (within, domains, link)


def test_bytes_of_a_hierarchical_ring():
    # 2 machines of 8: an all-gather of 1,600 bytes moves 7/8 of it inside, and then 1/8 of it between the two.
    whole = 1600
    sent = Collective("all-gather", ("data", "fsdp"), 1, round(whole * 15 / 16))
    moved = links.bytes_by_link([sent], {"data": 2, "fsdp": 8}, 8)
    assert moved["ici"] == pytest.approx(whole * 7 / 8)
    assert moved["dcn"] == pytest.approx(whole / 8 / 2)


def test_devices_at_hand_have_a_topology():
    topology = devices.at_hand(jax.devices())
    assert devices.name(topology) == "cpu:8" and topology.num_devices == 8
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert topology.chip.hbm_bytes * 8 == pytest.approx(memory, abs=8)
    assert devices.parse("cpu:8") == topology


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_the_compiler_does_not_undo_rematerialisation(layers):
    """Forward, recomputed and backward products: 4 of each matrix but the last of a layer, for 3 without remat."""
    _, mesh = mesh_of(1)

    def flops(remat: str) -> int:
        cfg = replace(CFG, model={"layers": layers, "remat": remat})
        built = program.build(cfg, mesh)
        return compile_and_read(built.trace().lower(), dict(mesh.shape))[1].flops

    model, tokens = CFG.model, 16 * 32
    heads = model.num_heads * model.head_dim
    # q, k, v, o and up; scores and mixed values are products with 32 keys a token.
    block = 2 * tokens * (4 * model.d_model * heads + model.d_model * model.d_ff + 2 * 32 * heads)
    assert flops("full") - flops("none") == 2 * block
