"""How far the analytic estimate is from the TPU compiler: `python -m benchmarks.analytic_memory` prints a line a case.

Every case is one training step of a GPT or Llama shape on one or eight v5e chips, compiled with no TPU attached
(`pip install libtpu`) at the compiler's least effort, 5 to 15 s a case on two cores. At the default effort, four times
as long, the totals of the three cases tried moved by 0.3, 1 and 7 %. What the compiler says and our estimate of the
same step go to `analytic_memory.json`:

- `state_bytes`: parameters and optimizer state. `total_bytes`: the compiler's arguments, temporaries and outputs,
  donated arrays counted once. `sent_bytes`: what a device sends in all its collectives. `flops`: from the compiler only
  where it is comparable, with unrolled layers, since it counts the body of a loop once.
- `error`: of our total, relative to the compiler's.

`--estimate-only` keeps the compiler's figures and renews the estimates alone. The last line is a summary, with the
median time of an estimate in milliseconds.

A case is large enough, 0.8 to 8 GiB a device, for the compiler's on-chip memory to matter little: a v5e has 128 MiB of
it, and what lives there is not counted as a temporary.
"""

import argparse
import json
import os
import statistics
import time
from math import prod
from pathlib import Path
from typing import Any

import jax

from bigjax import sharding
from bigjax.config import MESH_AXES, Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.preflight import analytic, devices, program, report
from bigjax.preflight.compiled import compile_and_read

TABLE = Path(__file__).with_suffix(".json")
GPT: dict[str, Any] = {"num_heads": 8, "positions": "learned", "norm": "layernorm", "activation": "gelu_tanh"}
LLAMA: dict[str, Any] = {
    "num_heads": 8,
    "num_kv_heads": 4,
    "d_ff": 2816,
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": "none",
    "tie_embeddings": False,
}


def _case(
    shape: dict,
    rows: int,
    remat: str = "full",
    optim: Any = "adamw",
    ema: float | None = None,
    train: dict | None = None,
    mesh: dict | None = None,
    seq_len: int = 1024,
    **model,
) -> Config:
    """Return a config: `rows` a step in all, 4 layers of width 1024, 16384 words, bfloat16, one device by default."""
    sizes = {"num_layers": 4, "d_model": 1024, "vocab_size": 16384, "max_seq_len": seq_len, "dtype": "bfloat16"}
    return Config(
        model=ModelConfig(**{**sizes, **shape, "remat": remat, **model}),
        data=DataConfig(seq_len=seq_len),
        train=TrainConfig(global_batch_size=rows, **(train or {})),
        optim=OptimConfig(name=optim, ema_decay=ema),
        mesh=MeshConfig(**{"data": 1, **(mesh or {})}),
    )


READ: dict[str, Config] = {
    "gpt none": _case(GPT, 8, "none"),
    "gpt full": _case(GPT, 8),
    "gpt dots": _case(GPT, 8, "dots"),
    "gpt save attn_out,mlp_out": _case(GPT, 16, "save:attn_out,mlp_out", num_layers=8),
    "gpt none blocked": _case(GPT, 8, "none", attention="blocked"),
    "gpt full blocked chunked": _case(GPT, 16, attention="blocked", train={"loss_chunks": 8}),
    "gpt full microbatches": _case(GPT, 16, train={"microbatches": 4}, num_layers=8),
    "gpt none unroll": _case(GPT, 8, "none", layers="unroll"),
    "gpt full unroll": _case(GPT, 8, layers="unroll"),
    "gpt full float32": _case(GPT, 8, dtype="float32"),
    "gpt none float32": _case(GPT, 4, "none", dtype="float32"),
    "gpt full splash": _case(GPT, 16, attention="splash", num_layers=8),
    "gpt none xla": _case(GPT, 8, "none", attention="xla"),
    "llama none": _case(LLAMA, 8, "none"),
    "llama full": _case(LLAMA, 8, num_layers=8),
    "llama dots splash": _case(LLAMA, 16, "dots", attention="splash", num_layers=8),
    "llama none splash": _case(LLAMA, 8, "none", attention="splash", num_layers=8),
    "llama full chunked microbatches": _case(LLAMA, 32, train={"loss_chunks": 8, "microbatches": 2}),
    "llama save qkv,attn_mixed,mlp_hidden": _case(LLAMA, 8, "save:qkv,attn_mixed,mlp_hidden"),
    "llama dots unroll": _case(LLAMA, 8, "dots", layers="unroll"),
    "llama full adafactor": _case(LLAMA, 8, optim="adafactor"),
    "llama full sgd average": _case(LLAMA, 8, optim="sgd", ema=0.99),
    "gpt full data8": _case(GPT, 64, mesh={"data": 8}),
    "llama none blocked data8": _case(LLAMA, 64, "none", attention="blocked", mesh={"data": 8}),
    "gpt full fsdp8": _case(GPT, 64, mesh={"fsdp": 8}, num_layers=8),
    "llama none fsdp8": _case(LLAMA, 64, "none", mesh={"fsdp": 8}),
    "llama dots chunked fsdp8": _case(LLAMA, 128, "dots", train={"loss_chunks": 8}, mesh={"fsdp": 8}),
    "gpt full unroll fsdp8": _case(GPT, 64, layers="unroll", mesh={"fsdp": 8}),
    "gpt full tensor8": _case(GPT, 32, mesh={"tensor": 8}),
    "llama dots data2 tensor4": _case(LLAMA, 32, "dots", mesh={"data": 2, "tensor": 4}),
    "gpt full fsdp4 tensor2": _case(GPT, 64, mesh={"fsdp": 4, "tensor": 2}, num_layers=8),
    "llama full microbatches data2 fsdp2 tensor2": _case(
        LLAMA, 128, train={"microbatches": 2}, mesh={"data": 2, "fsdp": 2, "tensor": 2}
    ),
    "llama full sequence data2 tensor4": _case(
        LLAMA, 64, mesh={"data": 2, "tensor": 4, "shard_sequence": True}, num_layers=8
    ),
    "gpt save qkv data4 fsdp2": _case(GPT, 64, "save:qkv", mesh={"data": 4, "fsdp": 2}),
    "llama none splash fsdp4 tensor2": _case(
        LLAMA, 64, "none", attention="splash", mesh={"fsdp": 4, "tensor": 2}, num_layers=8
    ),
}
"""Cases whose compiled programs told which arrays are alive at the peak."""

HELD_OUT: dict[str, Config] = {
    "gpt dots wide": _case(GPT, 4, "dots", seq_len=2048, d_model=2048, num_heads=16, num_layers=3, vocab_size=32768),
    "gpt none heads of 64": _case(GPT, 8, "none", num_heads=16),
    "gpt none relu_squared blocked": _case(GPT, 16, "none", activation="relu_squared", attention="blocked"),
    "gpt full deep data8": _case(GPT, 64, mesh={"data": 8}, d_model=768, num_heads=6, num_layers=12),
    "gpt offload mlp_hidden": _case(GPT, 8, "offload:mlp_hidden", num_layers=8),
    "gpt dots gelu chunked data4 tensor2": _case(
        GPT, 64, "dots", activation="gelu", train={"loss_chunks": 4}, mesh={"data": 4, "tensor": 2}
    ),
    "llama full muon fsdp8": _case(LLAMA, 64, optim="muon", mesh={"fsdp": 8}),
    "llama dots blocked window": _case(LLAMA, 8, "dots", attention="blocked", sliding_window=256, seq_len=2048),
    "llama full splash long fsdp2 tensor4": _case(
        LLAMA, 16, attention="splash", seq_len=4096, num_layers=8, mesh={"fsdp": 2, "tensor": 4, "shard_sequence": True}
    ),
    "llama none unroll chunked microbatches fsdp8": _case(
        LLAMA, 128, "none", layers="unroll", train={"loss_chunks": 8, "microbatches": 2}, mesh={"fsdp": 8}
    ),
    "gpt full slice2 data4": _case(GPT, 64, mesh={"slice": 2, "data": 4}),
    "gpt full slice2 fsdp4": _case(GPT, 64, mesh={"slice": 2, "fsdp": 4}),
    "llama 1b full splash chunked long fsdp8": _case(
        LLAMA,
        8,
        attention="splash",
        seq_len=8192,
        num_layers=16,
        d_model=2048,
        num_heads=32,
        num_kv_heads=8,
        d_ff=8192,
        vocab_size=128256,
        tie_embeddings=True,
        train={"loss_chunks": 16},
        mesh={"fsdp": 8},
    ),
}
"""Cases compiled once, after the model was settled: the error to expect elsewhere."""

CASES = READ | HELD_OUT


def compiled_figures(cfg: Config) -> dict[str, Any]:
    """Compile the training step for chips that need not be attached, and return its figures for one of them."""
    mesh = sharding.make_mesh(cfg.mesh, chips(cfg))
    built = program.build(cfg, mesh)
    compiled, found = compile_and_read(built.trace().lower(lowering_platforms=("tpu",)), dict(mesh.shape))
    comparable = cfg.model.layers == "unroll" and cfg.train.microbatches == 1
    return {
        "state_bytes": report.state_bytes(built.state),
        "total_bytes": found.needed_bytes - found.code_bytes,
        "sent_bytes": sum(collective.bytes_per_chip for collective in found.collectives),
        "flops": compiled.cost_analysis()["flops"] if comparable else None,
    }


def estimated_figures(cfg: Config) -> dict[str, Any]:
    """Return our estimate of the same figures, and what is alive at the peak."""
    found = analytic.estimate(cfg, mesh_sizes(cfg))
    return {
        "state_bytes": found.params_bytes + found.optimizer_bytes,
        "total_bytes": found.total_bytes,
        "sent_bytes": sum(collective.bytes_per_chip for collective in found.collectives),
        "flops": found.compiled_flops,
        "peak": found.peak,
        "gradient_bytes": found.gradient_bytes,
        "activation_bytes": found.activation_bytes,
        "temporary_bytes": found.temporary_bytes,
    }


def chips(cfg: Config) -> list[Any]:
    """Return as many v5e chips as the mesh has, in its number of slices; they need not exist."""
    slices = cfg.mesh.slice
    topology = devices.parse("v5e:2x4" if slices == 1 else "v5e:2x2", slices)
    return devices.of(topology)[: prod(mesh_sizes(cfg).values())]


def mesh_sizes(cfg: Config) -> dict[str, int]:
    """Return the size of every mesh axis."""
    return {axis: getattr(cfg.mesh, axis) for axis in MESH_AXES}


def row(name: str, compiled: dict[str, Any]) -> dict[str, Any]:
    """Return a case's line of the table."""
    estimated = estimated_figures(CASES[name])
    error = estimated["total_bytes"] / compiled["total_bytes"] - 1
    return {
        "case": name,
        "held_out": name in HELD_OUT,
        "error": round(error, 4),
        "compiled": compiled,
        "estimated": estimated,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the errors of the total over the cases, and the median time of an estimate."""
    read, held_out = ([abs(r["error"]) for r in rows if r["held_out"] == which] for which in (False, True))
    seconds = []
    for cfg in CASES.values():
        start = time.perf_counter()
        analytic.estimate(cfg, mesh_sizes(cfg))
        seconds.append(time.perf_counter() - start)
    errors = {
        f"{label}_error": {"median": statistics.median(errors), "max": max(errors)}
        for label, errors in (("read", read), ("held_out", held_out))
        if errors
    }
    return {"cases": len(rows), **errors, "estimate_ms": round(1e3 * statistics.median(seconds), 2)}


def main() -> None:
    """Read the command line, compile, print, write the table."""
    parser = argparse.ArgumentParser(description="Compare the analytic estimate with the TPU compiler.")
    parser.add_argument("--estimate-only", action="store_true", help="keep the compiler's figures of the table")
    if parser.parse_args().estimate_only:
        compiled = {entry["case"]: entry["compiled"] for entry in json.loads(TABLE.read_text())}
        rows = [row(name, compiled[name]) for name in CASES]
    else:
        os.environ.update(devices.ENVIRONMENT["tpu"])
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_optimization_level", "O0")
        rows = []
        for name, cfg in CASES.items():
            rows.append(row(name, compiled_figures(cfg)))
            jax.clear_caches()
    for entry in rows:
        print(json.dumps(entry))
    TABLE.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
