"""What a run says: one line on how it is doing, live on a terminal, from time to time in a log file; and sentences."""

import sys
from collections.abc import Mapping
from time import monotonic
from typing import Any

PLAIN_INTERVAL_S = 5.0
"""Seconds between lines where the output is not a terminal."""


def say(sentence: str) -> None:
    """Print a sentence on stderr, of several processes on that of process 0 alone."""
    import jax

    if jax.process_index() == 0:
        print(sentence, file=sys.stderr, flush=True)


def progress_line(step: int, total: int, metrics: Mapping[str, float], left_s: float | None) -> str:
    """Return e.g. `step  120/1000  loss 2.314  41.2k tok/s  MFU 38.1 %  left 1m12s`, of what is known.

    `perf/mfu` is a fraction; `left_s` is in seconds.
    """
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.3f}")
    if "eval/loss" in metrics:
        parts.append(f"eval loss {metrics['eval/loss']:.3f}")
    for unit, short in (("tokens", "tok"), ("rows", "rows")):
        if (rate := metrics.get(f"perf/{unit}_per_s")) is not None:
            parts.append(f"{_short(rate)} {short}/s")
    if "perf/mfu" in metrics:
        parts.append(f"MFU {100 * metrics['perf/mfu']:.1f} %")
    if left_s is not None:
        parts.append(f"left {duration(left_s)}")
    return "  ".join(parts)


class Progress:
    """The progress line of one session, on stderr.

    On a terminal it is redrawn in place, and what is printed meanwhile appears above it. Elsewhere it is printed for
    the first update, at most every `PLAIN_INTERVAL_S` after that, and at the end.
    """

    def __init__(self, total: int, start: int = 0):
        self._total = total
        self._start = (start, monotonic())
        self._metrics: dict[str, float] = {}
        self._line = ""
        self._printed: tuple[str, float] | None = None
        self._live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False)
            self._live.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show `step` and `metrics`; a metric not given keeps its last value."""
        now = monotonic()
        first = not self._metrics
        self._metrics |= metrics
        done, since = self._start
        left_s = (now - since) / (step - done) * (self._total - step) if step > done and not first else None
        if first:
            # The time to the first update is mostly compilation, which does not come back.
            self._start = (step, now)
        self._line = progress_line(step, self._total, self._metrics, left_s)
        if self._live:
            self._live.update(self._line, refresh=True)
        elif self._printed is None or (now - self._printed[1] >= PLAIN_INTERVAL_S and step < self._total):
            self._print(now)  # that of the last step waits for the last evaluation

    def close(self) -> None:
        """Leave the last line on the screen, or print it if it was not printed yet."""
        if self._live:
            self._live.stop()
        elif self._line and self._printed and self._printed[0] != self._line:
            self._print(monotonic())

    def _print(self, now: float) -> None:
        print(self._line, file=sys.stderr, flush=True)
        self._printed = (self._line, now)


def _short(number: float) -> str:
    """Return a number in three digits or so: 950, 41.2k, 1.3M."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5 or unit == "G":
            return f"{number:.1f}{unit}" if unit else f"{number:.0f}"
        number /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Return the two largest units of a duration: 8s, 1m12s, 3h05m, 2d04h."""
    left = round(seconds)
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return f"{left // 60}m{left % 60:02d}s"
    if left < 86400:
        return f"{left // 3600}h{left % 3600 // 60:02d}m"
    return f"{left // 86400}d{left % 86400 // 3600:02d}h"
