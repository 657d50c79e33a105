"""A plan as one page of text."""

from collections.abc import Iterator
from typing import Any

GIB = 2**30
PARAMETERS_SHOWN = 12
"""Rows of the table of parameters; the JSON has them all."""

OPERATIONS_SHOWN = 10
"""The most expensive operations that the page shows; the JSON has them all."""


def render(report: dict[str, Any]) -> str:
    """Return the page of a report made by `bigjax.preflight.plan.report`."""
    return "\n".join(line for section in _sections(report) for line in (*section, "")).rstrip()


def _sections(report: dict[str, Any]) -> Iterator[list[str]]:
    yield _verdict(report)
    yield _memory(report)
    yield _sharding(report)
    yield _work(report)
    yield _traffic(report)
    if report["compiler_cycles_per_step"] is not None:
        yield _cycles(report)
    yield _roofline(report)
    yield _arithmetic(report)


def _verdict(report: dict[str, Any]) -> list[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1) or "one device"
    slices = f", {report['num_slices']} slices" if report["num_slices"] > 1 else ""
    chips = f"{report['chips']:,} chips" if report["chips"] > 1 else "1 chip"
    lines = [
        f"{report['config']} on {report['topology']}{slices}: {chips}, mesh {mesh}",
        report["verdict"],
    ]
    if chosen := report.get("auto"):
        lines.append(f"  auto: {', '.join(f'{path}={value}' for path, value in chosen.items())}")
    for advice in report["advice"]:
        outcome = "fits" if advice["fits"] else "does not fit yet"
        saved = gib(advice["saves_bytes_per_chip"])
        lines.append(f"  {advice['change']} saves {saved} a chip: {outcome} [{advice['source']}]")
    return lines


def _memory(report: dict[str, Any]) -> list[str]:
    source = report["source"]["memory"]
    lines = [f"memory per chip [{source}]"]
    for label, key, note in (
        ("parameters", "params_bytes_per_chip", "exact"),
        ("optimizer state", "optimizer_bytes_per_chip", "exact"),
        ("temporaries", "temporary_bytes_per_chip", source),
        ("  of them gradients", "gradient_bytes_per_chip", "exact"),
        ("program", "program_bytes_per_chip", source),
        ("  alive at once", "peak_bytes_per_chip", source),
        ("needed", "hbm_bytes_per_chip_needed", source),
        (
            "the chip has",
            "hbm_bytes_per_chip",
            "this machine" if report["topology"].startswith("cpu") else "data sheet",
        ),
    ):
        if key in ("program_bytes_per_chip", "peak_bytes_per_chip") and not report[key]:
            continue  # nothing was compiled to the end
        lines.append(f"  {label:<20} {gib(report[key]):>12}  [{note}]")
    if report["hbm_bytes_accessed_per_chip"] is not None:
        lines.append(f"  read and written in a step: {gib(report['hbm_bytes_accessed_per_chip'])} [{source}]")
    if report["largest_buffers"]:
        lines.append("  largest buffers:")
    for buffer in report["largest_buffers"]:
        shape = "x".join(map(str, buffer["shape"])) or "scalar"
        where = buffer["source"] or "-"
        name = (buffer["op_name"] or buffer["name"]).removeprefix("jit(train_step)/")
        lines.append(f"    {gib(buffer['bytes']):>10}  {buffer['dtype']}[{shape}]  {name[-60:]}  {where}")
    return lines


def _sharding(report: dict[str, Any]) -> list[str]:
    rows = sorted(report["parameters"], key=lambda row: -row["bytes_per_chip"])
    lines = [f"sharding: {report['params_total']:,} parameters, {report['params_non_embedding']:,} without embeddings"]
    if "params_active" in report:
        lines[0] += f", {report['params_active']:,} active for a token"
    for row in rows[:PARAMETERS_SHOWN]:
        axes = []
        for axis, size, mesh_axes in zip(row["logical_axes"], row["shape"], row["mesh_axes"], strict=True):
            axes.append(f"{axis} {size}" + (f"/{'*'.join(mesh_axes)}" if mesh_axes else ""))
        lines.append(f"  {gib(row['bytes_per_chip']):>10}  {row['name']:<24} {', '.join(axes)}")
    if len(rows) > PARAMETERS_SHOWN:
        rest = sum(row["bytes_per_chip"] for row in rows[PARAMETERS_SHOWN:])
        lines.append(f"  {gib(rest):>10}  {len(rows) - PARAMETERS_SHOWN} more")
    lines += [f"  silent replication: {problem}" for problem in report["silent_replication"]]
    return lines + [f"  note: {note}" for note in report["notes"]]


def _work(report: dict[str, Any]) -> list[str]:
    lines = ["work per step", f"  model     {report['model_flops_per_step']:.4g} FLOPs: {report['flops_convention']}"]
    executed = f"{report['compiled_flops_per_step']:.4g} FLOPs, {report['recompute_ratio']:.3f} of the model's"
    return [*lines, f"  executed  {executed} [{report['source']['flops']}]"]


def _traffic(report: dict[str, Any]) -> list[str]:
    lines = [f"traffic per chip and step [{report['source']['traffic']}]"]
    for row in sorted(report["collectives"], key=lambda row: -row["bytes_per_chip"]):
        axes = "*".join(row["mesh_axes"])
        overlapped = row["overlapped_bytes_per_chip"] / max(row["bytes_per_chip"], 1)
        shown = f", {overlapped:.0%} overlapped" if overlapped else ""
        lines.append(
            f"  {row['kind']:<18} over {axes:<14} {row['link']:<7} {row['count']:>6} times "
            f"{gib(row['bytes_per_chip']):>12}{shown}"
        )
    if len(lines) == 1:
        return [*lines, "  none"]
    if report["source"]["traffic"] != "compiler":
        return lines
    kinds = ", ".join(f"{kind} {gib(sent)}" for kind, sent in report["sent_bytes_per_chip"].items())
    return [*lines, f"  sent in all: {kinds}; {report['async_share']:.0%} overlapped"]


def _cycles(report: dict[str, Any]) -> list[str]:
    """Return the compiler's estimate of the step, and the lines that it expects to take most of it."""
    cycles, share = report["compiler_cycles_per_step"], report["async_share"]
    waits = [] if share is None else [f"waits for the {1 - share:.0%} of the traffic that nothing hides"]
    kinds = [f"{kind} x{count:,}" for kind, count in report["cycles_not_counted"].items()]
    lines = [f"cycles per step [the compiler's estimate]: {cycles / 1e6:,.1f} million"]
    lines.append(f"  not counted: {', '.join(kinds + waits) or 'nothing'}")
    for one in report["operations"][:OPERATIONS_SHOWN]:
        lines.append(f"  {one['cycles'] / 1e6:>8,.1f} {one['cycles'] / cycles:>6.1%}  {named(one)}")
    return lines


def named(operation: dict[str, Any]) -> str:
    """Return the phase, the name and the line of one of a report's operations."""
    return f"{operation['phase']:<9}  {operation['name'][:48]:<48}  {operation['source'] or '-'}"


def _roofline(report: dict[str, Any]) -> list[str]:
    if report["seconds"] is None:
        return ["roofline: no figures for this device"]
    seconds, mfu, step = report["seconds"], report["mfu_estimate"], report["step_seconds_estimate"]
    parts = ", ".join(f"{name} {value:.4g} s" for name, value in seconds.items())
    return [
        f"roofline: {parts}; bound by {report['bound']}",
        f"  traffic that the program does not overlap: {report['exposed_link_seconds']:.4g} s",
        f"  MFU at most {report['mfu_limit']:.1%}; expected {mfu['mid']:.1%} "
        f"({mfu['low']:.1%} to {mfu['high']:.1%}, by the efficiency of published runs)",
        f"  step {step['mid']:.4g} s ({step['low']:.4g} to {step['high']:.4g} s)",
    ]


def _arithmetic(report: dict[str, Any]) -> list[str]:
    lines = [
        f"arithmetic: {report['tokens_per_step']:,} {report['unit']} a step, "
        f"{report['rows_per_device']:g} rows a device, "
        f"{report['steps']:,} steps = {report['run_tokens']:.4g} {report['unit']}"
    ]
    epochs = report["epochs"]
    lines[0] += ", epochs not known: the text was not read" if epochs is None else f" = {epochs:.4g} epochs"
    if "tokens_per_s" in report:
        lines.append(
            f"  {report['tokens_per_s']:,.0f} {report['unit']}/s, {_duration(report['days'] * 24)}, "
            f"{_duration(report['chip_hours'], 'chip-', longest='hours')}"
        )
    return lines


def _duration(hours: float, prefix: str = "", longest: str = "days") -> str:
    """Return a time in the largest unit that leaves a number of at least 1."""
    units = {"days": 24.0, "hours": 1.0, "minutes": 1 / 60, "seconds": 1 / 3600}
    for name, unit in list(units.items())[list(units).index(longest) :]:
        if hours >= unit:
            return (
                f"{hours / unit:,.0f} {prefix}{name}" if hours >= 100 * unit else f"{hours / unit:.3g} {prefix}{name}"
            )
    return f"less than 1 {prefix}second"


def gib(size: float) -> str:
    """Return bytes in the largest binary unit that leaves a number above 1."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} B"
