"""Points of a sweep as one compiled program: those that differ in numbers only train together, spread over the devices.

Each has its own data order, guard, checkpoints and run folder, which are what a run by itself leaves; any runner can go
on with them.
"""

import contextlib
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax

from bigjax import data
from bigjax.checkpoint.digests import complete_steps
from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.evaluate.scoring import scores_of
from bigjax.run import Pending, RunFolder, Throughput, metrics, runtime
from bigjax.science.sweeps import Point, without_scalars
from bigjax.science.sweeps import stacked as sweeps_stacked
from bigjax.science.sweeps.stacked import Stack
from bigjax.tasks import named_task
from bigjax.train import flops

from .launch import Launch, Outcome
from .local import WAIT_S
from .member import Alone, Member


def run(launch: Launch, limit: int, tick: Callable[[], None]) -> None:
    """Train the points of a launch, at most `limit` in one program, until each has ended or `launch.stopping`."""
    runtime.configure_jax()
    pause = threading.Event()
    while not launch.stopping:
        with launch.next(lambda free: _alike(launch, free)[:limit]) as claimed:
            if claimed:
                _run_together(launch, claimed, tick)
        if not claimed:
            tick()
            if not launch.open():
                return
            pause.wait(WAIT_S)


def check(points: Sequence[Point]) -> None:
    """Make sure that points can be trained beside others, before any starts.

    Raises:
      StackError: one cannot.
    """
    for point in points:
        sweeps_stacked.check(point.cfg)


def _alike(launch: Launch, free: list[Point]) -> list[Point]:
    """Return the points that can be one program with the first: they differ in numbers only, and are equally far."""
    runs = launch.folder.runs()

    def key(point: Point) -> tuple[Config, int]:
        found = runs.get(point.fingerprint)
        return without_scalars(point.cfg), _newest(found) if found else 0

    return [point for point in free if key(point) == key(free[0])]


def _newest(found: RunFolder) -> int:
    return max(complete_steps(found.checkpoints), default=0)


def _run_together(launch: Launch, claimed: Sequence[Point], tick: Callable[[], None]) -> None:
    folders = {point: launch.start(point) for point in claimed}
    members: list[Member] = []
    try:
        with contextlib.ExitStack() as files:
            members += [Member(point, folder, files, launch.say) for point, folder in folders.items()]
            _train(launch, members, tick)
        otherwise = Outcome("stopped")
    except UserError as error:  # of the data, a checkpoint or a folder: what stops one stops all
        otherwise = Outcome("failed", error.exit_code, str(error))
    except Exception as error:  # a bug that one program meets is no reason to give up the others
        otherwise = Outcome("failed", 1, f"{type(error).__name__}: {error}")
        for folder in folders.values():
            folder.output.write_text(traceback.format_exc())
    outcomes = {member.point: member.outcome for member in members}
    for point, folder in folders.items():
        launch.end(point, folder, outcomes.get(point) or otherwise)


def _train(launch: Launch, members: list[Member], tick: Callable[[], None]) -> None:
    """Train to the end, or until `launch.stopping`: the loop of `experiments.train.run` for many at once."""
    cfg = members[0].cfg
    total, every = cfg.train.steps, cfg.train.eval_every_steps
    alone, stack = Alone(cfg), Stack([member.cfg for member in members])
    start = _newest(members[0].folder)
    state = stack.put([member.restore(alone, start) for member in members]) if start else stack.init()
    for member in members:
        member.open(start)
    report = _Reports(members, start, alone)
    done = start
    for done in range(start + 1, total + 1):
        with report.speed.waiting_for_data():
            batches = [next(member.batches) for member in members]
        state, values = stack.advance(state, [batch.arrays for batch in batches])
        report.of(done, batches, values)
        tick()
        evaluating = bool(every) and done % every == 0 and done < total
        saving = launch.stopping or done == total or done % cfg.checkpoint.every_steps == 0
        if evaluating or saving:
            report.flush()  # what is not finite is neither scored nor saved
        if evaluating:
            _score(members, done, _evaluate(stack, state, members[0].text, cfg))
        if saving:
            for member, own in zip(members, alone.apart(state, len(members)), strict=True):
                if not member.outcome:
                    member.save(done, own)
        if launch.stopping or all(member.outcome for member in members):
            break
    if done < total:
        return
    scores = _evaluate(stack, state, members[0].text, cfg)
    _score(members, total, scores)
    weights = alone.apart(state.weights, len(members))
    for member, own, score in zip(members, weights, scores, strict=False):
        if not member.outcome:
            member.finish(alone, own, score, report.speed.average())


class _Reports:
    """Reads the metrics of a step while the next one runs, where it does."""

    def __init__(self, members: list[Member], start: int, alone: Alone):
        cfg = members[0].cfg
        self._members, self._pending = members, Pending(self._report)
        self._every, self._ends = cfg.log.every_steps, (start + 1, cfg.train.steps)
        self._tokens = cfg.train.global_batch_size * cfg.data.seq_len
        specs = alone.model.specs
        per_token = flops.model_flops_per_token(cfg.model, specs, cfg.data.seq_len, cfg.data.target_len)
        self.speed = Throughput(per_token, None, unit=named_task(cfg).unit)

    def of(self, done: int, batches: list[data.Batch], values: Any) -> None:
        """Report the step before, or this one if it has ended."""
        self._pending.dispatched(done, batches, values)
        self._pending.settle()

    def flush(self) -> None:
        """Report the last step, which waits for it."""
        self._pending.flush()

    def _report(self, done: int, batches: list[data.Batch], values: Any) -> None:
        values = jax.device_get(values)
        self.speed.count(self._tokens)
        rates = self.speed.read() if done % self._every == 0 or done in self._ends else None
        for i, member in enumerate(self._members):
            if not member.outcome:
                member.report(done, batches[i], jax.tree.map(lambda x: x[i], values), rates)  # noqa: B023


def _evaluate(stack: Stack, state: Any, text: data.TextData, cfg: Config) -> list[dict[str, float]]:
    """Return the scores of every point on the held-out text, empty if there is none."""
    weights, carried, totals = state.weights, stack.fresh(), None
    for batch in text.eval.batches(cfg.train.eval_batches) if text.eval else ():
        sums, carried = stack.evaluate(weights, batch.arrays, carried)
        totals = sums if totals is None else metrics.add(totals, sums)
    if totals is None:
        return [{}] * stack.room
    host = jax.device_get(totals)
    return [scores_of(jax.tree.map(lambda x: x[i], host)) for i in range(stack.room)]  # noqa: B023


def _score(members: list[Member], done: int, scores: list[dict[str, float]]) -> None:
    for member, own in zip(members, scores, strict=False):  # the stack may be filled up
        if not member.outcome:
            member.score(done, own)
