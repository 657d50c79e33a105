"""What a terminal shows of a sweep: a live table of its points, or a line for each that ends."""

import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from bigjax.run.console import duration
from bigjax.science.sweeps import Point
from bigjax.science.sweeps.folder import Status

REFRESH_S = 1.0

MAX_ROWS = 40
"""Rows of the live table: points that run come first, then those that ended badly, then the rest."""

COLOURS = {"running": "cyan", "finished": "green", "diverged": "yellow", "failed": "red", "cut off": "magenta"}
ORDER = ("running", "failed", "diverged", "cut off", "pruned", "finished", "waiting")


class LiveTable:
    """The table of a launch: redrawn in place on a terminal; elsewhere only what is said is printed.

    Args:
      live: whether to draw it; not where the runs show their own progress here.
    """

    def __init__(self, live: bool = True) -> None:
        self._live: Any = None
        self._since, self._drawn = monotonic(), 0.0
        self._first: dict[Point, int] | None = None
        if live and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False)

    def __enter__(self) -> "LiveTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        if self._live:
            self._live.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def show(self, statuses: Callable[[], Mapping[Point, Status]]) -> None:
        """Draw the table anew if it is time."""
        now = monotonic()
        if self._live and now - self._drawn >= REFRESH_S:
            self._drawn, found = now, statuses()
            self._live.update(render(found, self._left_s(found)), refresh=True)

    def _left_s(self, found: Mapping[Point, Status]) -> float | None:
        """Return the seconds left at the pace of this launch so far, None before its first step."""
        steps = {point: _steps(point, status) for point, status in found.items()}
        self._first = steps if self._first is None else self._first
        done = sum(max(0, count - self._first.get(point, 0)) for point, count in steps.items())
        left = sum(point.cfg.train.steps - count for point, count in steps.items())
        return (monotonic() - self._since) / done * left if done else None


def render(found: Mapping[Point, Status], left_s: float | None) -> Any:
    """Return the table of points as a rich renderable."""
    from rich.table import Table
    from rich.text import Text

    counts = {state: sum(status.state == state for status in found.values()) for state in ORDER}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    title = f"{len(found)} points: {summary}" + (f"; left {duration(left_s)}" if left_s is not None else "")
    table = Table("", "point", "state", "step", "loss", "left", title=title, title_justify="left")
    for column in (0, 3, 4, 5):
        table.columns[column].justify = "right"
    rows = sorted(found.items(), key=lambda item: (ORDER.index(item[1].state), item[0].number))
    for point, status in rows[:MAX_ROWS]:
        total = point.cfg.train.steps
        left = (
            status.time_s / status.step * (total - status.step) if status.state == "running" and status.step else None
        )
        table.add_row(
            str(point.number),
            Text(point.name),
            Text(status.state, COLOURS.get(status.state, "dim")),
            f"{status.step}/{total}",
            "" if status.loss is None else f"{status.loss:.4f}",
            "" if left is None else duration(left),
        )
    if len(rows) > MAX_ROWS:
        table.add_row("", f"... and {len(rows) - MAX_ROWS} more", "", "", "", "")
    return table


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows of `sweep.json`, those that finished by their loss, as plain text."""
    width = max(len(row["name"]) for row in rows)
    worst = float("inf")
    for row in sorted(rows, key=lambda row: (worst if row["loss"] is None else row["loss"], row["number"])):
        loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
        why = f"  {row['reason'].splitlines()[0]}" if row["reason"] else ""
        print(f"{row['number']:>4}  {row['name']:<{width}}  {row['state']:<9}  {loss:>8}{why}")


def _steps(point: Point, status: Status) -> int:
    return status.step if status.state in ("running", "cut off", "waiting") else point.cfg.train.steps
