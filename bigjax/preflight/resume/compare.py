"""Two traces of one run compared, quantity by quantity, in the order in which a step computes them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from bigjax.checkpoint.digests import complete_steps
from bigjax.checkpoint.reading import read_data_state
from bigjax.preflight.resume.witness import read_lines
from bigjax.run.folder import RunFolder
from bigjax.run.rows import read_rows

METRICS = {
    "optim/lr": "learning rate",
    "train/loss": "losses",
    "train/nll": "losses",
    "optim/grad_norm": "gradient norm",
}
"""Metric -> quantity, in the order in which a difference shows; all others are of the evaluation."""


@dataclass(frozen=True)
class Trace:
    """What one start of a run left behind.

    Attributes:
      start: updates made when it started. sources, rows: the sources and how many rows an epoch of each has.
      batches: step -> `ids` and `rows` (hashes), of all processes. states: updates made -> path -> array, as
        `witness.describe_state`. metrics: step -> the metrics that do not depend on the clock, of earlier starts too.
      data: step -> the data state in its checkpoint, of earlier starts too.
    """

    start: int
    sources: tuple[str, ...]
    rows: tuple[int, ...]
    batches: dict[int, dict[str, list]]
    states: dict[int, dict[str, Any]]
    metrics: dict[int, dict[str, float]]
    data: dict[int, dict[str, Any]]

    def drawn(self, step: int) -> list[int]:
        """Count in the ids of the first `step` batches how many rows each source gave."""
        total, counts = sum(self.rows), [0] * len(self.rows)
        for batch in (self.batches[done] for done in range(1, step + 1)):
            for id_ in (one for one in batch["ids"] if one >= 0):  # not padding
                row = id_ % total
                counts[next(i for i in range(len(counts)) if row < sum(self.rows[: i + 1]))] += 1
        return counts

    def epochs(self) -> dict[str, float]:
        """Return how many epochs of every source the run has seen."""
        counts = self.drawn(max(self.batches))
        return {name: count / rows for name, count, rows in zip(self.sources, counts, self.rows, strict=True)}


def read(workdir: Path, record: Path) -> Trace:
    """Return the trace of a start whose witness wrote to `record`, and whose run folder is `workdir`."""
    processes = read_lines(record)
    (facts, *lines), folder = processes[0], RunFolder(workdir)
    metrics: dict[int, dict[str, float]] = {}
    for row in read_rows(folder.metrics):
        kept = {name: value for name, value in row.items() if name.startswith(("train/", "eval/", "optim/"))}
        metrics.setdefault(row["step"], {}).update(kept)
    return Trace(
        start=lines[0]["step"],
        sources=tuple(facts["sources"]),
        rows=tuple(facts["rows"]),
        batches={line["step"]: _batch(processes, i) for i, line in enumerate(lines, 1) if "batch" in line},
        states={line["step"]: _state(processes, i) for i, line in enumerate(lines, 1)},
        metrics=metrics,
        data={step: read_data_state(folder.checkpoints, step) for step in complete_steps(folder.checkpoints)},
    )


def _batch(processes: list[list[dict]], line: int) -> dict[str, list]:
    """Put the batch together in the order of its rows; processes that share rows count twice if they disagree."""
    parts = {(lines[0]["first_row"], json.dumps(lines[line]["batch"])) for lines in processes}
    batches = [json.loads(batch) for _, batch in sorted(parts)]
    return {name: [entry for batch in batches for entry in batch[name]] for name in ("ids", "rows")}


def _state(processes: list[list[dict]], line: int) -> dict[str, Any]:
    first, *others = (lines[line]["state"] for lines in processes)
    agreed = {name: all(other[name] == value for other in others) for name, value in first.items()}
    return {name: value if agreed[name] else "another one on each process" for name, value in first.items()}


@dataclass(frozen=True)
class Judgement:
    """One comparison; `step` counts updates. `error` and `bound` are relative, of what need not be bit-identical."""

    step: int
    quantity: str
    what: str
    same: bool
    error: float = 0.0
    bound: float = 0.0

    def __str__(self) -> str:
        return f"{self.quantity} at step {self.step}: {self.what}"


def compare(expected: Trace, found: Trace, start: int, last: int, relative: float | None = None) -> Iterator[Judgement]:
    """Judge a start from step `start` against the straight run, up to step `last`, in the order of the computation.

    Without `relative`, all must be bit-identical. With it: the losses of the first step are within this bound, relative
    to themselves, and floating-point state and losses after that step, whose rounding an optimizer amplifies, are not
    judged; batches, counters and learning rates are.
    """
    yield _equal(start, "resume point", "the first step", start, found.start)
    yield from _states(expected, found, start, exact=True)
    for step in range(1, last + 1):
        exact, bound = relative is None or step <= start, relative if step == start + 1 else None
        if step > start:
            there, here = (trace.batches.get(step, {}) for trace in (expected, found))
            yield _equal(step, "batch ids", "the ids of its rows", there.get("ids"), here.get("ids"))
            yield _equal(step, "batch contents", "the hashes of its rows", there.get("rows"), here.get("rows"))
        yield from _metrics(expected, found, step, exact, bound)
        if step > start:
            yield from _states(expected, found, step, exact)
        if step in expected.data:
            yield from _data(expected, found, step)


def _metrics(expected: Trace, found: Trace, step: int, exact: bool, bound: float | None) -> Iterator[Judgement]:
    there, here = (trace.metrics.get(step, {}) for trace in (expected, found))
    names = [*METRICS, *sorted(name for name in there.keys() | here.keys() if name not in METRICS)]
    for name in names:
        quantity = METRICS.get(name, "evaluation")
        if name not in there and name not in here:
            continue
        if exact or quantity == "learning rate" or name not in there or name not in here:
            yield _equal(step, quantity, name, there.get(name), here.get(name))
        elif bound is not None and quantity == "losses":
            error = abs(here[name] - there[name]) / abs(there[name]) if there[name] else abs(here[name])
            what = f"{name} was {there[name]!r} and is {here[name]!r}, off by {error:.1e}, bound {bound:.1e}"
            yield Judgement(step, quantity, what, isfinite(error) and error <= bound, error, bound)


def _states(expected: Trace, found: Trace, step: int, exact: bool) -> Iterator[Judgement]:
    there, here = (trace.states.get(step, {}) for trace in (expected, found))
    judged = []
    for name in [*there, *(name for name in here if name not in there)]:
        value = there.get(name)
        if exact or isinstance(value, int):
            judged.append((_quantity(name, value), name, value, here.get(name)))
    # The counters come first: a schedule that starts again also changes the parameters.
    order = ("schedule", "parameters", "optimizer state", "EMA")
    for quantity, name, value, other in sorted(judged, key=lambda one: order.index(one[0])):
        yield _equal(step, quantity, name, value, other)


def _quantity(name: str, value: Any) -> str:
    if isinstance(value, int):
        return "schedule"  # updates made: what schedules, bias corrections and random keys depend on
    return {"params": "parameters", "ema": "EMA"}.get(name.partition("/")[0], "optimizer state")


def _data(expected: Trace, found: Trace, step: int) -> Iterator[Judgement]:
    """Judge the data state in a checkpoint; how many rows each source gave is counted in the batches themselves."""
    there, here = expected.data[step], found.data.get(step)
    if here is None:
        yield Judgement(step, "data position", "there is no complete checkpoint", same=False)
        return
    for name in there:
        if name != "sources":
            yield _equal(step, "data position", name, there[name], here.get(name))
    for i, (source, count) in enumerate(zip(there["sources"], expected.drawn(step), strict=True)):
        counted = source | {"rows": count, "epoch": count // expected.rows[i]}
        other = here["sources"][i] if i < len(here["sources"]) else {}
        for name, value in counted.items():
            yield _equal(step, "mixture counters", f"{name} of {expected.sources[i]}", value, other.get(name))


def _equal(step: int, quantity: str, what: str, there: Any, here: Any) -> Judgement:
    return Judgement(step, quantity, f"{what} was {_short(there)} and is {_short(here)}", there == here)


def _short(value: Any) -> str:
    text = "missing" if value is None else str(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
