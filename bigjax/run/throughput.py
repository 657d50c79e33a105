"""How fast a run goes, and a trace of the steps one wants to look into."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import jax

from bigjax.paths import on_disk
from bigjax.run.folder import RunFolder

MEASURE_EVERY_S = 60.0
"""How often the peak of a CPU is measured again: that takes about 0.1 s."""


class Throughput:
    """Tokens per second, model FLOPs utilisation and time spent waiting for data, between two readings.

    Args:
      flops_per_token: by `train.flops`. peak_flops: of all devices in FLOP/s, None if unknown.
      measure: measures the peak again, where it is no figure of a data sheet. Whatever else runs can only lower what is
        measured, so the highest counts; it is measured at the first reading, too, and then once in `MEASURE_EVERY_S`.
      unit: what is counted, tokens or rows.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak_flops: float | None,
        measure: Callable[[], float | None] | None = None,
        unit: str = "tokens",
    ):
        self._unit = unit
        self._flops_per_token, self._peak_flops, self._measure = flops_per_token, peak_flops, measure
        self._measured_at: float | None = None
        self._tokens = self._total_tokens = 0
        self._since = perf_counter()
        self._seconds = self._data_wait_s = 0.0
        self._warm = False

    def count(self, tokens: int) -> None:
        """Note that a step on this many tokens is done. The first step is left out: it compiles."""
        if self._warm:
            self._tokens += tokens
        else:
            self._warm, self._since, self._data_wait_s = True, perf_counter(), 0.0

    def read(self) -> dict[str, float]:
        """Return the `perf/` metrics since the last reading, and start anew."""
        now = perf_counter()
        seconds, waited, tokens = now - self._since, self._data_wait_s, self._tokens
        self._since, self._data_wait_s, self._tokens = now, 0.0, 0
        if not tokens:
            return {}
        self._seconds += seconds
        self._total_tokens += tokens
        rate = tokens / seconds
        metrics = {f"perf/{self._unit}_per_s": rate, "perf/data_wait_s": waited}
        if self._measure and (self._measured_at is None or now - self._measured_at >= MEASURE_EVERY_S):
            self._measured_at = now
            with self.paused():
                self._peak_flops = max(self._peak_flops or 0.0, self._measure() or 0.0)
        if self._peak_flops:
            metrics["perf/mfu"] = rate * self._flops_per_token / self._peak_flops
            if self._measure:
                metrics["perf/measured_peak_flops"] = self._peak_flops
        return metrics

    def average(self) -> float | None:
        """Return the tokens per second of all readings together; None before the first."""
        return self._total_tokens / self._seconds if self._seconds else None

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = perf_counter()
        yield
        self._data_wait_s += perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out, such as that of an evaluation."""
        start = perf_counter()
        yield
        self._since += perf_counter() - start


class Profile:
    """A context that traces the steps in `steps` into the run folder, to be opened with XProf or Perfetto."""

    def __init__(self, folder: RunFolder, steps: range | None):
        self._folder, self._steps, self._tracing = folder, steps or range(0), False
        self._files = ExitStack()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Start the trace if `step` is the first one to be traced."""
        if step in self._steps and not self._tracing:
            place = self._files.enter_context(on_disk(self._folder.profile))
            jax.profiler.start_trace(str(place))
            self._tracing = True

    def after(self, step: int, outputs: Any) -> None:
        """End the trace, once the devices are done, if `step` was the last one to be traced."""
        if self._tracing and step + 1 not in self._steps:
            jax.block_until_ready(outputs)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            self._files.close()
