"""Two plans next to each other: their figures, and which operations make the difference."""

from typing import Any

from bigjax.preflight.plan.page import OPERATIONS_SHOWN, gib, named
from bigjax.preflight.plan.traffic import KINDS

COMPARED = (
    "hbm_bytes_per_chip_needed",
    "peak_bytes_per_chip",
    "params_bytes_per_chip",
    "optimizer_bytes_per_chip",
    "temporary_bytes_per_chip",
    "params_total",
    "model_flops_per_step",
    "recompute_ratio",
    "compiler_cycles_per_step",
    "hbm_bytes_accessed_per_chip",
    "async_share",
    "mfu_limit",
    "mfu_estimate",
    "step_seconds_estimate",
    "tokens_per_step",
    "tokens_per_s",
    "days",
    "chip_hours",
)
"""What `beside` compares."""


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the cycles of every operation in two plans, `[{phase, name, source, cycles: [a, b]}]`.

    None if one of them states no cycles. The largest difference comes first. Operations are the same if phase, name and
    line are.
    """
    if not (a["operations"] and b["operations"]):
        return None
    cycles: dict[tuple[str, ...], list[int]] = {}
    for which, report in enumerate((a, b)):
        for one in report["operations"]:
            key = tuple(one[field] for field in ("phase", "name", "source"))
            cycles.setdefault(key, [0, 0])[which] += one["cycles"]
    rows = [{"phase": key[0], "name": key[1], "source": key[2], "cycles": both} for key, both in cycles.items()]
    return sorted(rows, key=lambda row: -abs(row["cycles"][1] - row["cycles"][0]))


def beside(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return the figures of two plans next to each other, and their ratio."""
    names = [report["config"] for report in (a, b)]
    width = max(24, *map(len, names))
    lines = [f"{'':<28} {names[0]:>{width}} {names[1]:>{width}} {'b / a':>8}"]
    lines.append(f"{'fits':<28} {a['fits']!s:>{width}} {b['fits']!s:>{width}}")
    figures = [(key, _figure(a, key), _figure(b, key)) for key in COMPARED]
    figures += [
        (f"sent bytes, {kind}", *(report["sent_bytes_per_chip"].get(kind, 0) for report in (a, b)))
        for kind in KINDS
        if any(kind in report["sent_bytes_per_chip"] for report in (a, b))
    ]
    for key, x, y in figures:
        if x is None or y is None:
            continue
        shown = [gib(value) if "bytes" in key else f"{value:,.4g}" for value in (x, y)]
        ratio = f"{y / x:8.3f}" if x else ""
        lines.append(f"{key:<28} {shown[0]:>{width}} {shown[1]:>{width}} {ratio}")
    lines.append(f"{'bound':<28} {a['bound']!s:>{width}} {b['bound']!s:>{width}}")
    return "\n".join(lines + _operations(a, b))


def _operations(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    rows = difference(a, b)
    if rows is None:
        return []
    rows = [row for row in rows if row["cycles"][0] != row["cycles"][1]]
    if not rows:
        return ["", "every operation costs as many cycles in both"]
    lines = ["", "million cycles by operation, the largest differences first", f"{'a':>9} {'b':>9} {'b - a':>9}"]
    for row in rows[:OPERATIONS_SHOWN]:
        x, y = (cycles / 1e6 for cycles in row["cycles"])
        lines.append(f"{x:>9,.1f} {y:>9,.1f} {y - x:>+9,.1f}  {named(row)}")
    return lines


def _figure(report: dict[str, Any], key: str) -> float | None:
    value = report.get(key)
    return value["mid"] if isinstance(value, dict) else value
