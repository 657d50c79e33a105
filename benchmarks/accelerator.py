"""What a machine with accelerators does with a train step: right first, then how fast, beside what the plan says.

    python -m benchmarks.accelerator --out=accelerator.json
    python -m benchmarks.accelerator --tiny          # the same program on any machine, its sizes made small

Meant for one host with GPUs or TPUs, all of which it uses, in less than 8 minutes; nothing is downloaded. Each part is
a process of its own and prints a line of JSON; at the end there is a table. `accelerator_parts` says what the parts
measure. If `correct` fails nothing is timed. Exit status: 0 all parts ran; 1 one did not, and its line says why; 4 an
attention back end or the step computes something else than the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PARTS = ("correct", "160m", "1b", "sparse")

WRONG = 4


def main() -> int:
    """Read the command line, run the parts one after the other, print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, separated by commas")
    parser.add_argument("--budget_s", type=float, default=460.0, help="seconds for all parts together")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the program where there is no chip")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        from benchmarks import accelerator_parts

        print(json.dumps(accelerator_parts.measure(args.part, args.tiny)), flush=True)
        return 0
    asked = args.parts.split(",")
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"--parts={args.parts}: there is no part {unknown[0]!r}, only {', '.join(PARTS)}")
    started, found = time.monotonic(), {}
    for name in asked:
        found[name] = _in_a_process(name, args.tiny, args.budget_s - (time.monotonic() - started))
        print(json.dumps({"part": name, **found[name]}), flush=True)
        if name == "correct" and found[name].get("same") is False:
            break
    report = {"date": datetime.now(UTC).date().isoformat(), "seconds": round(time.monotonic() - started, 1), **found}
    print(table(report))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    if found.get("correct", {}).get("same") is False:
        return WRONG
    return 1 if any("error" in one for one in found.values()) else 0


def _in_a_process(name: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Return what one part measured, or why it did not, as `error`."""
    if seconds <= 0:
        return {"error": "no time was left: --budget_s allows more, --parts chooses"}
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--part={name}", *(["--tiny"] if tiny else [])]
    # Memory is taken as it is needed, so that the peak is that of the step.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s, all that --budget_s left"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"error": lines[-1][:500]}
    return json.loads(done.stdout.splitlines()[-1])


def table(report: dict[str, Any]) -> str:
    """Return what was timed as Markdown: a row a model, measured figures beside the plan's."""
    head = (
        "model",
        "parameters",
        "tokens/s",
        "MFU",
        "step",
        "plan's step",
        "memory",
        "plan's memory",
        "save",
        "restore",
    )
    rows = [head, ("---",) * len(head)]
    for name, one in report.items():
        if not isinstance(one, dict) or "step_s" not in one:
            continue
        planned = one["plan_step_s"]
        rows.append(
            (
                name,
                f"{one['parameters']:,}",
                f"{one['tokens_per_s']:,.0f}",
                "" if one["mfu"] is None else f"{one['mfu']:.1%}",
                f"{1000 * one['step_s']:.0f} ms",
                "" if planned is None else "{low:.0f}-{high:.0f} ms".format(**{k: 1000 * planned[k] for k in planned}),
                _gib(one["peak_bytes"]),
                f"{_gib(one['plan_bytes'])}, {_gib(one['compiler_bytes'])} by the compiler",
                *(f"{one[key]:.1f} s" if key in one else "" for key in ("save_s", "restore_s")),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
