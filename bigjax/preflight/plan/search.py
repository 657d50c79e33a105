"""The best plan of a config on a topology: every candidate by the analytic model, the best of them by the compiler."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.preflight.plan import candidates, compiler, devices
from bigjax.preflight.plan.candidates import Candidate
from bigjax.preflight.plan.compiler import Outcome
from bigjax.run.chips import Topology

WORKERS = 2
"""Compilers at work at a time."""

SLACK = 1.25
"""A candidate is compiled if the analytic model gives it at most this many times the chip's memory: the model is within
25 % of the compiler (`benchmarks.analytic_memory`)."""

PATIENCE = 8
"""Compilations in a row without a better plan after which the search is over."""


@dataclass(frozen=True)
class Tried:
    """A candidate and what the compiler made of it."""

    candidate: Candidate
    outcome: Outcome
    report: dict[str, Any] | None

    @property
    def fits(self) -> bool:
        """Whether the compiler placed it on the chip."""
        return self.report is not None and bool(self.report["fits"])

    @property
    def rank(self) -> tuple[float, float]:
        """As `Candidate.rank`, from the compiled step."""
        assert self.report
        step_s, exposed_s = self.report["step_seconds_estimate"]["mid"], self.report["exposed_link_seconds"]
        return candidates.rank(step_s, exposed_s, self.report["seconds"])

    @property
    def order(self) -> tuple:
        """Sorts the plans that fit first, the fastest of them in front; those without a report come last."""
        return not self.fits, self.rank if self.report else (float("inf"), 0.0)


@dataclass(frozen=True)
class Found:
    """What a search found: all it compiled, best first, and how many candidates there were."""

    tried: list[Tried]
    considered: int
    pruned: int
    seconds: float

    @property
    def best(self) -> Tried | None:
        """The fastest plan that fits, if any."""
        fitting = [one for one in self.tried if one.fits]
        return min(fitting, key=lambda one: one.rank) if fitting else None

    @property
    def pareto(self) -> list[Tried]:
        """The plans that fit and that no other beats in both memory and time, fastest first."""
        front: list[Tried] = []
        for one in sorted((t for t in self.tried if t.fits), key=lambda t: (t.rank, _memory(t))):
            if not front or _memory(one) < _memory(front[-1]):
                front.append(one)
        return front


def _memory(tried: Tried) -> int:
    assert tried.report
    return tried.report["hbm_bytes_per_chip_needed"]


def search(
    cfg: Config,
    topology: Topology,
    *,
    budget_s: float,
    timeout_s: float,
    judge: Callable[[Candidate, Outcome], dict[str, Any]],
    show: Callable[[list[Tried], int, int], None],
) -> Found:
    """Compile the most promising candidates, two at a time and quickly, until `budget_s` seconds are over.

    `cfg` itself comes first, then candidates in the order of their analytic step time, so the first that fits is a good
    one; the search ends early when `PATIENCE` more did not beat the best. `judge(candidate, outcome)` makes the report
    of one, and `show(tried, running, left)` is called whenever something happens.

    Raises:
      UserError: no candidate fits, by the analytic model.
    """
    start = time.monotonic()
    everything = list(candidates.variants(cfg, topology))
    limit = SLACK * topology.chip.hbm_bytes
    queue = sorted((one for one in everything if one.needed_bytes_per_chip <= limit), key=lambda one: one.rank)
    if not queue:
        smallest = min(everything, key=lambda one: one.needed_bytes_per_chip, default=None)
        least = "no mesh divides the batch and the model"
        if smallest is not None:
            needed = smallest.needed_bytes_per_chip / 2**30
            least = f"the least is {needed:.1f} GiB a chip with {candidates.flags(smallest.changes)}"
        where = f"{devices.name(topology)} by the analytic model ({len(everything)} tried)"
        raise UserError(f"no plan fits {where}: {least}")
    considered, pruned = len(everything), len(everything) - len(queue)
    # What the user wrote comes first, so that what is found is never worse.
    queue = [one for one in queue if not one.changes] + _distinct([one for one in queue if one.changes])
    tried: list[Tried] = []
    running: list[tuple[Candidate, compiler.Compilation]] = []
    since_best, best = 0, None
    while running or queue:
        left_s = budget_s - (time.monotonic() - start)
        over = left_s <= 0 or since_best >= PATIENCE
        while queue and len(running) < WORKERS and not over:
            one = queue.pop(0)
            running.append((one, compiler.start(one.cfg, topology, quick=True)))
            show(tried, len(running), len(queue))
        if over:
            for _, compilation in running:
                compilation.kill()
            break
        for pair in list(running):
            one, compilation = pair
            outcome = compilation.check(timeout_s)
            if outcome is None:
                continue
            running.remove(pair)
            report = None if outcome.failure else judge(one, outcome)
            tried.append(Tried(one, outcome, report))
            if tried[-1].fits and (best is None or tried[-1].rank < best.rank):
                best, since_best = tried[-1], 0
            elif best is not None:
                since_best += 1
            show(tried, len(running), len(queue))
        time.sleep(compiler.POLL_S)
    tried.sort(key=lambda one: one.order)
    return Found(tried, considered, pruned, time.monotonic() - start)


def as_rows(found: Found) -> list[dict[str, Any]]:
    """Return what was compiled as JSON rows, best first."""
    front = found.pareto
    keys = ("hbm_bytes_per_chip_needed", "step_seconds_estimate", "bound", "mfu_limit")
    return [
        {
            "changes": one.candidate.changes,
            "fits": one.fits,
            "pareto": one in front,
            "failure": one.outcome.failure,
            **{key: one.report[key] if one.report else None for key in keys},
        }
        for one in found.tried
    ]


def _distinct(queue: list[Candidate]) -> list[Candidate]:
    """Keep, of candidates with the same mesh and remat, those with the fewest microbatches that differ in memory."""
    seen: dict[tuple, int] = {}
    kept = []
    for one in queue:
        key = tuple((path, value) for path, value in one.changes.items() if path != "train.microbatches")
        if key in seen and one.needed_bytes_per_chip > 0.95 * seen[key]:
            continue
        seen[key] = min(seen.get(key, one.needed_bytes_per_chip), one.needed_bytes_per_chip)
        kept.append(one)
    return kept
