"""The tables of the page Measured that are made from what the benchmarks compute or have stored."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks import compiled  # noqa: E402
from bigjax.preflight.plan.roofline import published_runs, roofline  # noqa: E402


def on_page_markdown(markdown, page, config, files):
    """Put the tables in the place of their names."""
    if page.file.src_uri != "measured.md":
        return None
    tables = {"memory": memory_table, "roofline": roofline_table, "compiled": compiled_table}
    for name, table in tables.items():
        markdown = markdown.replace(f"<!-- {name} -->", table())
    return markdown


def memory_table() -> str:
    """Return how far the analytic memory is from the compiler's, by family, from `benchmarks/analytic_memory.json`."""
    errors = defaultdict(list)
    for row in json.loads((ROOT / "benchmarks" / "analytic_memory.json").read_text()):
        errors[row["case"].split()[0]].append(row["error"])
    errors["all"] = [error for each in errors.values() for error in each]
    lines = ["| model | cases | median distance | largest distance |", "|---|---|---|---|"]
    for name, values in errors.items():
        sizes = [abs(value) for value in values]
        lines.append(f"| {name} | {len(sizes)} | {statistics.median(sizes):.1%} | {max(sizes):.1%} |")
    return "\n".join(lines)


def compiled_table() -> str:
    """Return the figures of `benchmarks/compiled_budget.json`, as multiples of MaxText's where those are known."""
    theirs = json.loads(compiled.MAXTEXT.read_text())["rows"]
    found = json.loads(compiled.BUDGET.read_text())["rows"]
    rows = [compiled.table_row(name, row, compiled.best_of(theirs, name)) for name, row in found.items()]
    return "\n".join([*compiled.HEADER, *rows])


def roofline_table() -> str:
    """Return what published runs reached beside what the plan would have said of them."""
    lines = ["| run | chips | published MFU | bound | expected, 80 % interval | source |", "|---|---|---|---|---|---|"]
    inside = 0
    runs = published_runs()
    for run in runs:
        chips = run.topology_used
        bound = roofline(run.work, chips).mfu_limit
        told = roofline(run.work, chips, without=[run.name]).mfu_estimate
        inside += told["low"] <= run.mfu <= told["high"]
        expected = f"{told['mid']:.1%} ({told['low']:.1%} to {told['high']:.1%})"
        count = f"{chips.chip.name} x {chips.num_chips:,}"
        lines.append(f"| {run.name} | {count} | {run.mfu:.1%} | {bound:.1%} | {expected} | {run.source} |")
    return "\n".join([*lines, "", f"The interval holds {inside} of the {len(runs)} runs."])
