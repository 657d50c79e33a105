"""How far the analytic estimate is from the TPU compiler: `python -m benchmarks.analytic_memory` prints a line a case.

Every case is one training step of a small model of some family on one or eight v5e chips, compiled with no TPU attached
(`pip install libtpu`) at the compiler's least effort, 5 to 90 s a case on two cores. At the default effort, four times
as long, the totals of the three cases tried moved by 0.3, 1 and 7 %. What the compiler says and our estimate of the
same step go to `analytic_memory.json`:

- `state_bytes`: parameters and optimizer state. `total_bytes`: the compiler's arguments, temporaries and outputs,
  donated arrays counted once. `sent_bytes`: what a device sends in all its collectives. `flops`: those of the
  compiled program, with the turns of loops, where no kernel hides some; of the older rows, only if they are unrolled.
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

from benchmarks.analytic_cases import HELD_OUT, READ
from bigjax import sharding
from bigjax.config import Config
from bigjax.preflight.plan import devices, program, report
from bigjax.preflight.plan.analytic import estimate as analytic
from bigjax.preflight.plan.compiled import compile_and_read

TABLE = Path(__file__).with_suffix(".json")
CASES = READ | HELD_OUT
"""All of them; see `analytic_cases`."""


def compiled_figures(cfg: Config) -> dict[str, Any]:
    """Compile the training step for chips that need not be attached, and return its figures for one of them."""
    mesh = sharding.make_mesh(cfg.mesh, chips(cfg))
    built = program.build(cfg, mesh)
    _, found = compile_and_read(built.trace().lower(lowering_platforms=("tpu",)), dict(mesh.shape))
    return {
        "state_bytes": report.state_bytes(built.state),
        "total_bytes": found.needed_bytes - found.code_bytes,
        "sent_bytes": sum(collective.bytes_per_chip for collective in found.collectives),
        "flops": None if found.uncounted_calls else found.flops,
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
    return cfg.mesh.sizes


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
