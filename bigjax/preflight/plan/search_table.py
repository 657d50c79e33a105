"""The live table of a search, and its summary."""

from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from bigjax.preflight.plan.candidates import flags
from bigjax.preflight.plan.page import gib
from bigjax.preflight.plan.search import Found, Tried

ROWS = 12


class SearchTable:
    """Shows the best candidates so far on stderr while a search runs; on a pipe only the summary appears."""

    def __init__(self):
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "SearchTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._live:
            self._live.stop()

    def show(self, tried: list[Tried], running: int, left: int) -> None:
        """Draw the table anew."""
        if not self._live:
            return
        title = f"{len(tried)} compiled, {running} running, {left} left"
        table = Table("plan", "memory a chip", "step s", "bound", title=title)
        for one in sorted(tried, key=lambda t: t.order)[:ROWS]:
            table.add_row(*_cells(one))
        self._live.update(table, refresh=True)

    def summary(self, found: Found) -> str:
        """Return what was tried and the Pareto front of memory against time as text."""
        lines = [
            f"{found.considered} candidates, {found.pruned} too large by the analytic model, "
            f"{len(found.tried)} compiled quickly in {found.seconds:.0f} s"
        ]
        failures = [one for one in found.tried if one.outcome.failure]
        lines += [f"  {flags(one.candidate.changes)}: {one.outcome.failure}" for one in failures]
        lines.append("memory against estimated step time, of the plans that no other beats in both:")
        for one in found.pareto:
            plan, memory, seconds, bound = _cells(one)
            lines.append(f"  {memory:>12}  {seconds:>9} s  {bound:<8} {plan}")
        return "\n".join(lines)


def _cells(one: Tried) -> tuple[str, str, str, str]:
    plan = flags(one.candidate.changes)
    if one.report is None:
        return plan, one.outcome.failure or "", "", ""
    report = one.report
    memory = gib(report["hbm_bytes_per_chip_needed"]) + ("" if one.fits else " (too large)")
    return plan, memory, f"{report['step_seconds_estimate']['mid']:.4g}", report["bound"]
