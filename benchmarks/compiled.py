"""What the TPU compiler makes of the step of large models, beside what it makes of MaxText's; no chip is needed.

    python -m benchmarks.compiled
    python -m benchmarks.compiled --rows='v5p-128 fsdp$' --write

Prints a table: a chip's memory alive at once, GiB sent in a step and the share sent under other work, and the
compiler's own estimate of cycles, each as (a multiple of MaxText's figure in the row). The TPU compiler must be
installed (extra `plan-tpu`); a row takes about 80 CPU-seconds and 3 GiB of memory, and comes from the cache of plans
where the same program was compiled before.

- `compiled_maxtext.json`: MaxText's figures, facts with version and settings. Only rows of the same JAX and libtpu
  compare programs; others compare compilers too, and say so.
- `compiled_budget.json`: the figures of today, by row. A figure that rises above them by more than `SLACK` is named,
  and the exit status is 1. `--write` puts today's figures there, so that a rise is seen in review.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from bigjax.config import Config
from bigjax.preflight.plan import candidates, devices
from bigjax.preflight.plan.planner import Planner
from experiments import cli, config_source

BUDGET = Path(__file__).with_name("compiled_budget.json")
MAXTEXT = Path(__file__).with_name("compiled_maxtext.json")
GIB = 2**30

HEADER = (
    "| row | GiB alive (of MaxText's) | GiB sent | overlapped | million cycles | GiB of HBM traffic |",
    "|---|---|---|---|---|---|",
)

SLACK = 0.002
"""What a figure may rise: the compiler's choices shift by less when unrelated lines move."""

FIGURES = ("peak_gib", "sent_gib", "mcycles", "hbm_gib", "needed_gib")
"""Figures of which less is better."""

COMPARED = ("jax", "libtpu")
"""Packages whose versions make a program what it is."""


class Row(NamedTuple):
    """A config on a topology, with fields other than its own."""

    config: str
    topology: str
    changes: dict[str, Any]


FIXED = {"model.attention": "splash", "model.remat": "full", "train.microbatches": 1, "train.loss_chunks": 1}
"""What MaxText was compiled with, and so are we, unless a row says otherwise."""


def _llama(topology: str, chips: int, **changes: Any) -> Row:
    """Return a row of llama 8b, one row of tokens a chip."""
    fixed = FIXED | {"train.global_batch_size": chips}
    return Row("llama:8b", topology, fixed | {key.replace("__", "."): value for key, value in changes.items()})


V5E, V5P, V6E = "v5e:16x16", "v5p:4x4x8", "v6e:16x16"
TENSOR = {"mesh__tensor": 4, "mesh__shard_sequence": True}

ROWS = {
    "llama-8b v5e-256 fsdp": _llama(V5E, 256, mesh__fsdp=256),
    "llama-8b v5e-256 fsdp, loss in 8": _llama(V5E, 256, mesh__fsdp=256, train__loss_chunks=8),
    "llama-8b v5e-256 fsdp x tensor": _llama(V5E, 256, mesh__fsdp=64, **TENSOR),
    "llama-8b v5p-128 fsdp": _llama(V5P, 128, mesh__fsdp=128),
    "llama-8b v5p-128 fsdp x tensor": _llama(V5P, 128, mesh__fsdp=32, **TENSOR),
    "llama-8b v6e-256 fsdp": _llama(V6E, 256, mesh__fsdp=256),
    "llama-8b v6e-256 fsdp x tensor": _llama(V6E, 256, mesh__fsdp=64, **TENSOR),
    "mixtral-8x7b v5p-128 fsdp x expert": Row(
        "mixtral:8x7b",
        V5P,
        FIXED | {"train.global_batch_size": 128, "mesh.fsdp": 16, "mesh.expert": 8},
    ),
}


def config_of(row: Row) -> Config:
    """Return the config of a row."""
    loaded = cli.load_config(config_source.load(row.config))
    return candidates.pinned(candidates.apply(loaded, row.changes), devices.parse(row.topology))


def measure(row: Row) -> dict[str, Any]:
    """Compile a row; return its figures, GiB a chip, and the versions of the compiler."""
    plan = Planner(devices.parse(row.topology), row.config).plan(config_of(row))
    if plan["compiler_cycles_per_step"] is None:
        raise SystemExit(f"{row.config} on {row.topology}: the compiler stated no figures; {plan['verdict']}")
    sent = {kind: round(size / GIB, 2) for kind, size in plan["sent_bytes_per_chip"].items()}
    return {
        "peak_gib": round(plan["peak_bytes_per_chip"] / GIB, 2),
        "needed_gib": round(plan["hbm_bytes_per_chip_needed"] / GIB, 2),
        "sent_gib": round(sum(plan["sent_bytes_per_chip"].values()) / GIB, 2),
        "sent_gib_by_kind": sent,
        "async_share": round(plan["async_share"], 3),
        "mcycles": round(plan["compiler_cycles_per_step"] / 1e6, 1),
        "not_counted": plan["cycles_not_counted"],
        "hbm_gib": round(plan["hbm_bytes_accessed_per_chip"] / GIB, 1),
        "versions": {name: plan["versions"][name] for name in COMPARED},
    }


def table_row(name: str, found: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    """Return a line of the table; `theirs` are MaxText's figures."""
    cells = []
    for key in ("peak_gib", "sent_gib", "async_share", "mcycles"):
        shown = f"{found[key]:.0%}" if key == "async_share" else f"{found[key]:,.4g}"
        other = theirs[key] if theirs else None
        cells.append(shown if other is None or key == "async_share" else f"{shown} ({found[key] / other:.2f})")
    return f"| {name} | {' | '.join(cells)} | {found['hbm_gib']:,.0f} |"


def rises(name: str, found: dict[str, Any], budget: dict[str, Any] | None) -> list[str]:
    """Return a sentence for every figure above the budget, none where other versions made it."""
    if budget is None:
        return [f"{name}: there is no budget yet; --write makes one"]
    if budget["versions"] != found["versions"]:
        return []
    return [
        f"{name}: {key} rose from {budget[key]} to {found[key]}"
        for key in FIGURES
        if found[key] > budget[key] * (1 + SLACK)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--write", action="store_true", help="make today's figures the budget")
    asked = parser.parse_args()
    devices.check_installed("tpu")
    facts, budget = json.loads(MAXTEXT.read_text()), json.loads(BUDGET.read_text())
    known = facts["versions"]
    print(*HEADER, sep="\n", flush=True)
    problems = []
    for name, row in ROWS.items():
        if not re.search(asked.rows, name):
            continue
        found = measure(row)
        print(table_row(name, found, facts["rows"].get(name)), flush=True)
        if any(known[package] != found["versions"][package] for package in COMPARED):
            print(f"note: {name}: {found['versions']}, MaxText's are of {known}", file=sys.stderr)
        if asked.write:
            rows = budget["rows"] | {name: found}
            budget["rows"] = {known: rows[known] for known in ROWS if known in rows}
            BUDGET.write_text(json.dumps(budget, indent=1) + "\n")
        else:
            problems += rises(name, found, budget["rows"].get(name))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
