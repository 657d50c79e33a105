"""The plan of a run as one dictionary: does it fit, how it is split, what bounds it, what it costs.

Units are in the keys. "chip" means a physical chip, which may be several devices of the mesh (TPU7x: 2).

Keys: `schema_version`, `config`, `fingerprint`, `topology`, `num_slices`, `chips`, `devices`, `mesh` (axis -> size),
`source` {memory, flops, traffic} ("compiler" or "analytic"), `uncounted_calls` (kernels whose FLOPs the compiler does
not state), `versions`, `compile_s`;
`fits`, `verdict`, `advice` [{change, saves_bytes_per_chip, fits, source}], `auto` {field: what it was resolved to};
`hbm_bytes_per_chip_needed`, `hbm_bytes_per_chip`, `params_bytes_per_chip`,
`optimizer_bytes_per_chip` (averaged parameters included), `gradient_bytes_per_chip` (like the parameters),
`temporary_bytes_per_chip` (gradients and activations included), `program_bytes_per_chip`,
`peak_bytes_per_chip` (alive at once by the compiler; less than needed, since room between arrays lies idle; null
without a compiler),
`largest_buffers` [{name, shape, dtype, bytes, op_name, source}];
`parameters` [{name, shape, logical_axes, mesh_axes, bytes_per_chip}], `silent_replication` [sentence, also about what
is padded], `notes`;
`params_total`, `params_non_embedding`, of a sparse model also `params_active`;
`model_flops_per_step`, `flops_convention`, `compiled_flops_per_step`, `recompute_ratio`;
`collectives` [{kind, mesh_axes, link, count, bytes_per_chip, overlapped_bytes_per_chip}],
`sent_bytes_per_chip` (kind -> bytes), `async_share` (of them, sent under other work; null where nothing is sent);
`hbm_bytes_accessed_per_chip` (null where nothing was compiled), `compiler_cycles_per_step` (the TPU compiler's own
estimate for one device; null elsewhere), `cycles_not_counted` (what it leaves out: kind -> executions),
`operations` [{phase, name, source, count, cycles}], the most expensive first;
`seconds` {compute, hbm, ici, dcn}, `exposed_link_seconds`, `bound`, `mfu_limit`, `mfu_estimate` {low, mid, high},
`step_seconds_estimate` {low, mid, high}, all null where there are no figures for the devices;
`unit` (tokens or rows), `tokens_per_step`, `rows_per_device`, `steps`, `run_tokens`, `epochs` (null where the text was
not read), `tokens_per_s`, `days`, `chip_hours` (at the estimate's middle).
"""

import math
from dataclasses import asdict
from math import prod
from typing import Any

import jax

from bigjax import params as param_tree
from bigjax.config import BATCH_AXES, MESH_AXES, strict
from bigjax.data.batches import ramp as batch_ramp
from bigjax.preflight.plan import devices, links, roofline
from bigjax.preflight.plan.analytic.estimate import Estimate
from bigjax.preflight.plan.compiled import Compiled
from bigjax.preflight.plan.compiler import Outcome
from bigjax.preflight.plan.program import Program
from bigjax.preflight.plan.traffic import KINDS
from bigjax.run.chips import Topology
from bigjax.sharding import REPLICATION_LIMIT_BYTES, axes_of, axes_of_entry
from bigjax.tasks import named_task
from bigjax.train import flops

SCHEMA_VERSION = 1


def build(
    program: Program,
    topology: Topology,
    estimate: Estimate,
    outcome: Outcome | None,
    *,
    config: str,
    run_tokens: float | None = None,
    steps_per_epoch: float | None = None,
) -> dict[str, Any]:
    """Return the plan; `outcome` is None for the analytic model alone, and no failure."""
    cfg, per_chip = program.cfg, topology.num_devices // topology.num_chips
    compiled = outcome.compiled if outcome else None
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "fingerprint": strict.fingerprint(cfg),
        "topology": devices.name(topology),
        "num_slices": topology.num_slices,
        "chips": topology.num_chips,
        "devices": topology.num_devices,
        "mesh": {axis: program.mesh.shape[axis] for axis in MESH_AXES},
        "source": {
            "memory": "compiler" if compiled or (outcome and outcome.out_of_memory_bytes) else "analytic",
            "flops": "compiler" if compiled and not compiled.uncounted_calls else "analytic",
            "traffic": "compiler" if compiled else "analytic",
        },
        "versions": (outcome.versions if outcome else None) or {},
        "compile_s": compiled.compile_s if compiled else None,
        "uncounted_calls": compiled.uncounted_calls if compiled else [],
    }
    report |= _memory(program, topology, estimate, outcome, per_chip)
    report |= _sharding(program, compiled, per_chip)
    report |= _work(program, topology, estimate, compiled, per_chip)
    return report | _arithmetic(program, topology, report, run_tokens, steps_per_epoch)


def state_bytes(tree: Any) -> int:
    """Return the bytes of a tree of sharded abstract arrays on one device."""
    return sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _memory(program: Program, topology: Topology, estimate: Estimate, outcome: Outcome | None, per_chip: int) -> dict:
    state = program.state
    params, optimizer = state_bytes(state.params), state_bytes((state.opt_state, state.ema))
    compiled = outcome.compiled if outcome else None
    program_bytes = 0
    if compiled:
        needed, temporary, program_bytes = compiled.needed_bytes, compiled.temp_bytes, compiled.code_bytes
    elif outcome and outcome.out_of_memory_bytes:
        temporary = outcome.out_of_memory_bytes
        needed = state_bytes((state, program.batch)) + temporary
    else:
        needed = estimate.total_bytes
        temporary = needed - params - optimizer
    hbm = topology.chip.hbm_bytes
    fits = needed * per_chip <= hbm and not (outcome and outcome.out_of_memory_bytes)
    return {
        "fits": fits,
        "hbm_bytes_per_chip_needed": needed * per_chip,
        "hbm_bytes_per_chip": hbm,
        "params_bytes_per_chip": params * per_chip,
        "optimizer_bytes_per_chip": optimizer * per_chip,
        "gradient_bytes_per_chip": state_bytes(state.params) * per_chip,
        "temporary_bytes_per_chip": temporary * per_chip,
        "program_bytes_per_chip": program_bytes * per_chip,
        "peak_bytes_per_chip": compiled.peak_bytes * per_chip if compiled else None,
        "largest_buffers": compiled.largest_buffers if compiled else [],
    }


def _sharding(program: Program, compiled: Compiled | None, per_chip: int) -> dict[str, Any]:
    specs, stored = param_tree.names(program.model.specs), param_tree.names(program.state.params)
    rows = []
    for name, spec in specs.items():
        x = stored[name]
        where = [list(axes_of_entry(entry)) for entry in x.sharding.spec]
        where += [[]] * (len(x.shape) - len(where))
        rows.append(
            {
                "name": name,
                "shape": list(spec.shape),
                "logical_axes": list(spec.axes),
                "mesh_axes": where,
                "bytes_per_chip": state_bytes(x) * per_chip,
            }
        )
    return {
        "parameters": rows,
        "silent_replication": silent_replication(program) + (padding(program, compiled) if compiled else []),
        "notes": list(program.layout.notes),
        **param_tree.counts(program.model.specs, program.cfg.model.moe.experts_per_token),
    }


def silent_replication(program: Program) -> list[str]:
    """Return a sentence for everything that the mesh repeats on several devices without being told to.

    A mesh axis that splits neither the batch nor a parameter; an array of the state above the limit that `fsdp` leaves
    whole. The means over the rows or columns of a parameter that Adafactor keeps may be: they are small beside it, and
    have lost the axis that `fsdp` splits.
    """
    sizes, problems, used = dict(program.mesh.shape), [], set()
    shapes = {spec.shape for spec in jax.tree.leaves(program.model.specs)}
    for array in program.batch.values():
        used |= axes_of(array.sharding.spec)
    missing = [axis for axis in BATCH_AXES if sizes[axis] > 1 and axis not in used]
    problems += [f"the batch is repeated along mesh.{axis}={sizes[axis]}" for axis in missing]
    for name, x in param_tree.names(program.state).items():
        entries = [axes_of_entry(entry) for entry in x.sharding.spec]
        used |= {axis for entry in entries for axis in entry}
        size = prod(x.shape) * x.dtype.itemsize
        allowed = any(name.endswith(f"/{allowed}") for allowed in program.cfg.mesh.allow_replicated)
        allowed |= name.startswith("opt_state/") and x.shape not in shapes
        if sizes["fsdp"] > 1 and size > REPLICATION_LIMIT_BYTES and not any(entries) and not allowed:
            problems.append(f"{name} ({size / 2**20:.1f} MiB) is whole on every device")
    idle = [axis for axis, size in sizes.items() if size > 1 and axis not in used]
    problems += [f"mesh.{axis}={sizes[axis]} splits nothing: its devices repeat each other's work" for axis in idle]
    return problems


def padding(program: Program, compiled: Compiled) -> list[str]:
    """Return a sentence for every array of the state and the batch of which the compiled step takes more than a share.

    A layout that pads is refused before anything is compiled; this is about what the compiler made of the layout.
    """
    problems, sizes = [], dict(program.mesh.shape)
    for tree, root in ((program.state, "state"), (program.batch, "batch")):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            name = root + jax.tree_util.keystr(path)
            taken, share = compiled.arguments.get(name), x.sharding.shard_shape(x.shape)
            for axis, (mine, even) in enumerate(zip(taken or (), share, strict=False)):
                if mine > even:
                    entry = axes_of_entry(x.sharding.spec[axis])
                    over = " * ".join(f"mesh.{a}={sizes[a]}" for a in entry) or "one device"
                    problems.append(
                        f"{name}: axis {axis} of size {x.shape[axis]} over {over} is padded: a device takes {mine}, "
                        f"an even share is {even}"
                    )
    return problems


def _work(program: Program, topology: Topology, estimate: Estimate, compiled: Compiled | None, per_chip: int) -> dict:
    cfg, mesh_shape = program.cfg, dict(program.mesh.shape)
    tokens = cfg.train.global_batch_size * cfg.data.seq_len
    model = flops.run_flops_per_token(cfg, program.model.specs) * tokens
    one = named_task(cfg).unit.removesuffix("s")
    # Kernels state no work, so a step with some is taken at the analytic count.
    exact = compiled if compiled and not compiled.uncounted_calls else None
    executed = exact.flops if exact else estimate.compiled_flops
    collectives = compiled.collectives if compiled else estimate.collectives
    found = None
    if topology.platform != "cpu":
        found = roofline.of_step(
            topology,
            mesh_shape,
            collectives,
            model_flops=model / topology.num_devices,
            compiled_flops=executed,
            hbm_bytes=compiled.bytes_accessed if compiled else estimate.hbm_bytes,
            hbm_bytes_min=estimate.hbm_bytes_min,
            dtype=cfg.model.dtype,
        )
    rows = []
    for one in collectives:
        link = links.split(one.mesh_axes, mesh_shape, topology.devices_per_slice).link
        sizes = {key: getattr(one, key) * per_chip for key in ("bytes_per_chip", "overlapped_bytes_per_chip")}
        rows.append({**asdict(one), "mesh_axes": list(one.mesh_axes), "link": link, **sizes})
    sent = sum(row["bytes_per_chip"] for row in rows)
    return {
        "model_flops_per_step": model,
        "flops_convention": f"6 N + 12 L H K S a {named_task(cfg).unit.removesuffix('s')} (Chowdhery et al. 2022, "
        "appendix B), no recomputation",
        "compiled_flops_per_step": executed * topology.num_devices,
        "recompute_ratio": executed * topology.num_devices / model,
        "collectives": rows,
        "sent_bytes_per_chip": {
            kind: sum(row["bytes_per_chip"] for row in rows if row["kind"] == kind)
            for kind in sorted({row["kind"] for row in rows}, key=KINDS.index)
        },
        "async_share": sum(row["overlapped_bytes_per_chip"] for row in rows) / sent if sent else None,
        "hbm_bytes_accessed_per_chip": compiled.bytes_accessed * per_chip if compiled else None,
        "compiler_cycles_per_step": compiled.cost.cycles if compiled else None,
        "cycles_not_counted": compiled.cost.not_counted if compiled else {},
        "operations": [asdict(one) for one in compiled.cost.operations] if compiled else [],
        "seconds": dict(found.seconds) if found else None,
        "exposed_link_seconds": found.exposed_link_seconds if found else None,
        "bound": found.bound if found else None,
        "mfu_limit": found.mfu_limit if found else None,
        "mfu_estimate": dict(found.mfu_estimate) if found else None,
        "step_seconds_estimate": dict(found.step_seconds_estimate) if found else None,
    }


def _arithmetic(
    program: Program,
    topology: Topology,
    report: dict[str, Any],
    run_tokens: float | None,
    steps_per_epoch: float | None,
) -> dict:
    cfg = program.cfg
    tokens = cfg.train.global_batch_size * cfg.data.seq_len
    ramp = batch_ramp.build(cfg)
    rows = None if run_tokens is None else math.ceil(run_tokens / cfg.data.seq_len)
    steps = cfg.train.steps if rows is None else ramp.steps_for(rows)
    planned = ramp.rows_before(steps) * cfg.data.seq_len
    ways = prod(program.mesh.shape[axis] for axis in BATCH_AXES)
    found: dict[str, Any] = {
        "unit": named_task(cfg).unit,
        "tokens_per_step": tokens,
        "rows_per_device": cfg.train.global_batch_size / ways,
        "steps": steps,
        "run_tokens": planned,
        "epochs": planned / tokens / steps_per_epoch if steps_per_epoch else None,
    }
    seconds = report["step_seconds_estimate"]
    if seconds is not None:
        # Of a small batch of a ramp only the microbatches that hold it are computed.
        days = ramp.full_steps(steps, cfg.train.global_batch_size, cfg.train.num_microbatches) * seconds["mid"] / 86400
        found |= {
            "tokens_per_s": tokens / seconds["mid"],
            "days": days,
            "chip_hours": days * 24 * topology.num_chips,
        }
    return found
