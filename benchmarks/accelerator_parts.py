"""The parts of `benchmarks.accelerator`, each measured in a process of its own.

- `correct`: a small llama, one step by every attention back end of the platform in float32 and in bfloat16, on packed
  rows: losses and every gradient beside those of the reference back end in float32 on the CPU, within the bounds of
  `preflight.equivalence`. Float32 products are asked for in full precision, which no timed part does.
- `160m`, `1b`, `sparse`: models of Llama's shape, the last with 8 experts of which a token sees 2. The rows a device
  are the most of a power of two that the analytic plan fits into nine tenths of its memory. `step_s` is the median of
  three turns of steps that are dispatched one after the other and waited for once. MFU is by `flops_convention`, of the
  chips' published peak in bfloat16 (of a CPU, of a product's measured rate). `plan_*` is what `experiments.plan
  --analytic` says, `compiler_bytes` what the compiler allots, `peak_bytes` what the device counted.
- `160m` also saves its state and restores it, as `benchmarks.checkpoint` does.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks.checkpoint import one_turn, seconds
from benchmarks.trainer import Trainer
from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig, replace
from bigjax.models.attention.backends import BACKENDS
from bigjax.params import count
from bigjax.preflight.equivalence import bounds as error_bounds
from bigjax.preflight.equivalence import compare
from bigjax.preflight.equivalence.observation import MEANS, MeshFailure, Stage, distance
from bigjax.preflight.plan import devices, planner
from bigjax.run import runtime
from bigjax.run.chips import PlanError
from bigjax.train import flops

FASTEST = {"gpu": "cudnn", "tpu": "splash", "cpu": "blocked"}
"""The attention back end that is timed on each platform."""

MOST_ROWS = 32
"""Rows a device that are tried first."""

STEPS, TURNS, WARM_UP = 10, 3, 2


def measure(part: str, tiny: bool) -> dict[str, Any]:
    """Return the figures of one part, and what they were measured on."""
    runtime.configure_jax()
    found = jax.devices()
    machine = {"devices": len(found), "kind": found[0].device_kind, "jax": jax.__version__, "tiny": tiny}
    return machine | (_correct(found[0]) if part == "correct" else _timed(part, found, tiny))


def model(part: str, platform: str, tiny: bool) -> ModelConfig:
    """Return the shape of a timed part: heads of 128, as kernels on TPUs need them."""
    shape: dict[str, Any] = {
        "160m": {"vocab_size": 32000, "num_layers": 12, "d_model": 768, "num_heads": 6, "d_ff": 3072},
        "1b": {"vocab_size": 128256, "num_layers": 16, "d_model": 2048, "num_heads": 16, "num_kv_heads": 4}
        | {"d_ff": 8192, "tie_embeddings": True, "remat": "full"},
        "sparse": {"vocab_size": 32000, "num_layers": 12, "d_model": 1024, "num_heads": 8, "d_ff": 1792}
        | {"moe": MoeConfig(num_experts=8, router="topk", top_k=2, aux_loss=0.02)},
    }[part]
    if tiny:
        shape |= {"vocab_size": 512, "num_layers": 2, "d_model": 256, "num_heads": 2, "num_kv_heads": 2, "d_ff": 512}
    common: dict[str, Any] = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": "none"}
    fixed = {"tie_embeddings": False, "dtype": "bfloat16", "attention": FASTEST[platform], "max_seq_len": 2048}
    return ModelConfig(**(common | fixed | shape))


def config(part: str, platform: str, num_devices: int, rows: int, tiny: bool) -> Config:
    """Return the run of a timed part: `rows` of 2,048 tokens a device, its state split over all of them."""
    shape = model(part, platform, tiny)
    return Config(
        model=shape,
        data=DataConfig(tokenizer=f"bpe:{shape.vocab_size}", seq_len=128 if tiny else 2048),
        train=TrainConfig(steps=1000, global_batch_size=rows * num_devices, loss_chunks=8, eval_batches=1),
        optim=OptimConfig(name="adamw", lr=3e-4, warmup=0.1),
        mesh=MeshConfig(data=1, fsdp=-1),
    )


def _correct(device: jax.Device) -> dict[str, Any]:
    """Compare every back end on `device` with the reference on the CPU."""
    cpu, checks = jax.devices("cpu")[0], []
    for name, backend in BACKENDS.items():
        dtypes = [dtype for dtype in backend.dtypes if device.platform in backend.platforms]
        for dtype in dtypes:
            cfg = replace(config("160m", device.platform, 1, 8, True), model={"attention": name, "dtype": dtype})
            cfg = dataclasses.replace(compare.small(cfg)[-1], mesh=MeshConfig(data=1))
            with jax.default_matmul_precision("highest"):
                checks.append({"attention": name, "dtype": dtype, **against_cpu(cfg, device, cpu)})
    return {"same": all(check["same"] for check in checks), "checks": checks}


def against_cpu(cfg: Config, device: jax.Device, cpu: jax.Device) -> dict[str, Any]:
    """Return whether a step on `device` has the losses and gradients of the CPU, and what comes nearest to a bound."""
    exact = compare.reference(replace(cfg, model={"attention": "reference", "dtype": "float32"}), device=cpu)
    params = sum(value.size for value in exact.values.values())
    limits = error_bounds.bounds(cfg, params, 1, int(exact.batch["tokens"].size))
    expected = dataclasses.replace(exact, cfg=cfg, bounds=limits)
    try:
        stage = Stage(cfg, cfg.mesh, [device])
        stage.initial()
        seen = stage.observe(expected.values, expected.batch, expected.eps)
    except MeshFailure as error:
        return {"same": False, "reason": f"fails to {error.stage}: {error}"[:500]}
    allowed = expected.allowed()
    found = [
        compare.Difference("mean", name, distance(seen.losses[name], value), limits.relative * abs(float(value)))
        for name, value in expected.losses.items()
        if name in MEANS
    ]
    found += [
        compare.Difference("gradient", name, distance(seen.grads[name], expected.grads[name]), allowed[name])
        for name in expected.order
    ]
    check = compare.judged(compare.Check("one device", cfg.model.dtype, "same"), found)
    said = {"same": check.status == "same", "largest_ratio": round(check.largest_ratio, 4), "at": check.largest_at}
    return said | ({"reason": str(check.differences[0])} if check.differences else {})


def _timed(part: str, found: list[Any], tiny: bool) -> dict[str, Any]:
    """Time the step of one model on all devices, beside its plan."""
    cfg, planned = _largest(part, found, tiny)
    if found[0].platform == "cpu":
        cfg = replace(cfg, model={"dtype": "float32"})  # which CPUs multiply
    trainer = Trainer(cfg, found)
    trainer.advance(WARM_UP)
    turns = [seconds(lambda: trainer.advance(STEPS)) / STEPS for _ in range(TURNS)]
    step_s = statistics.median(turns)
    tokens = cfg.train.global_batch_size * cfg.data.seq_len
    per_step = tokens * flops.run_flops_per_token(cfg, trainer.model.specs)
    peak = flops.peak_flops(found)
    stats, memory = found[0].memory_stats() or {}, trainer.compiled.memory_analysis()
    figures = {
        "parameters": count(trainer.model.specs),
        "rows_per_device": cfg.train.global_batch_size // len(found),
        "attention": cfg.model.attention,
        "tokens_per_s": tokens / step_s,
        "step_s": step_s,
        "step_s_range": [min(turns), max(turns)],
        "mfu": None if peak is None else per_step / step_s / peak,
        "flops_convention": planned["flops_convention"],
        "plan_step_s": planned["step_seconds_estimate"],
        "plan_bytes": planned["hbm_bytes_per_chip_needed"],
        "compiler_bytes": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "peak_bytes": stats.get("peak_bytes_in_use"),
    }
    if part == "160m":
        with tempfile.TemporaryDirectory() as folder:
            turn = one_turn(trainer, Path(folder) / "turn")
        figures |= {key: turn[key] for key in ("bytes", "call_s", "save_s", "restore_s")}
    return figures


def _largest(part: str, found: list[Any], tiny: bool) -> tuple[Config, dict[str, Any]]:
    """Return the run with the most rows that fit, and its plan.

    Raises:
      PlanError: not even one row a device fits.
    """
    topology = devices.at_hand(found)
    rows = 2 if tiny else MOST_ROWS
    while rows:
        cfg = config(part, found[0].platform, len(found), rows, tiny)
        planned = planner.Planner(topology, f"benchmarks.accelerator {part}", analytic=True).plan(cfg)
        if planned["hbm_bytes_per_chip_needed"] <= 0.9 * planned["hbm_bytes_per_chip"]:
            return cfg, planned
        rows //= 2
    raise PlanError(f"{part} does not fit {len(found)} x {found[0].device_kind}, not even with one row a device")
