"""Adaptive search: Optuna proposes the next point from the losses of those before, and ends bad ones early.

A study lives in a journal file, or in any SQL database that Optuna takes, and any number of launches on any number of
machines may work on one. A trial is a point like any other: a proposal that has been trained already costs nothing.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bigjax.run import lease
from bigjax.run.folder import RunFolder
from bigjax.run.rows import read_rows
from bigjax.science import sweeps
from bigjax.science.sweeps import Change, Choice, Distribution, Point, SweepError
from bigjax.science.sweeps.folder import Status

from .. import extras
from . import local as sweep_local
from .launch import Launch, Outcome, outcome_of
from .local import WAIT_S, Command, train_command


class Search:
    """A study of the points of a launch.

    Args:
      space: distributions by dotted path. base: what every point changes.
      storage: of the study, a path or an SQL URL.
      sampler: `tpe` (Bergstra et al. 2011) or `random`. asha: whether to end bad trials by asynchronous successive
        halving (Li et al. 2020), judged by each evaluation.
      seed: of the sampler; None where several launches share a study, so that they differ.

    Raises:
      UserError: Optuna is missing, or the storage cannot be used.
    """

    def __init__(
        self,
        launch: Launch,
        space: Mapping[str, Distribution],
        base: ConfigDict,
        storage: str,
        *,
        sampler: str = "tpe",
        asha: bool = False,
        seed: int | None = None,
    ):
        self._optuna = extras.load("optuna", "sweep", "--search")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._launch, self._space, self._base = launch, space, base
        self._distributions = {path: self._distribution(path, one) for path, one in space.items()}
        first = self._point(0, {path: one.at(0.5) for path, one in space.items()})  # a typo is told before any starts
        every = first.cfg.train.eval_every_steps
        if asha and not every:
            raise SweepError("--pruner=asha judges by evaluations: set train.eval_every_steps")
        pruners, samplers = self._optuna.pruners, self._optuna.samplers
        self._study = self._optuna.create_study(
            storage=self._storage(storage),
            study_name=self._identity(first),
            load_if_exists=True,
            sampler=samplers.TPESampler(seed=seed) if sampler == "tpe" else samplers.RandomSampler(seed=seed),
            pruner=pruners.SuccessiveHalvingPruner(min_resource=every) if asha else pruners.NopPruner(),
        )
        self._mutex = threading.Lock()

    def run(self, trials: int, processes: int, tick: Callable[[], None], command: Command = train_command) -> None:
        """Train until the study has so many trials that ended."""
        self._again_what_was_lost()

        def work(environment: dict[str, str]) -> None:
            while (trial := self._ask(trials)) is not None:
                point = self._launch.add(self._point(trial.number + 1, trial.params))
                self._tell(trial, self._train(trial, point, environment, command))

        sweep_local.in_slots(work, processes, self._launch, tick)

    def points(self) -> list[Point]:
        """Return the points of all trials, each once."""
        first: dict[str, Point] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.params.keys() == self._space.keys():
                point = self._point(trial.number + 1, trial.params)
                first.setdefault(point.fingerprint, point)
        return list(first.values())

    def _identity(self, first: Point) -> str:
        """Return the name of the study: another base or space is another study."""
        space = sorted((path, repr(one)) for path, one in self._space.items())
        return f"{first.fingerprint}-{hashlib.sha256(repr(space).encode()).hexdigest()[:8]}"

    def _point(self, number: int, values: Mapping[str, Any]) -> Point:
        return sweeps.point_of(number, Change(dict(values)), self._base, list(self._space))

    def _distribution(self, path: str, one: Distribution) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(one, Choice):
            return kinds.FloatDistribution(one.low, one.high, log=one.log)
        if not all(option is None or isinstance(option, (bool, int, float, str)) for option in one.options):
            raise SweepError(f"the choice of {path} has options that a search cannot store: numbers, words, None")
        return kinds.CategoricalDistribution(one.options)

    def _storage(self, where: str) -> Any:
        if "://" in where:
            try:
                return self._optuna.storages.RDBStorage(where)
            except Exception as error:
                raise SweepError(f"--storage={where} cannot be opened: {str(error).splitlines()[0]}") from error
        journal = self._optuna.storages.journal
        try:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            return self._optuna.storages.JournalStorage(journal.JournalFileBackend(where))
        except OSError as error:
            raise SweepError(f"--storage={where} cannot be opened: {error.strerror}") from error

    def _ask(self, trials: int) -> Any:
        with self._mutex:
            states = self._optuna.trial.TrialState
            counted = (states.COMPLETE, states.PRUNED, states.RUNNING)
            if self._launch.stopping or len(self._study.get_trials(deepcopy=False, states=counted)) >= trials:
                return None
            return self._study.ask(self._distributions)

    def _train(self, trial: Any, point: Point, environment: dict[str, str], command: Command) -> Status | None:
        """Return how the point of a trial ended, whoever trained it; None if this launch is stopped before."""
        pause, reported = threading.Event(), set[int]()
        while (status := self._launch.settled(point)) is None and not self._launch.stopping:
            with self._launch.next(lambda free: [point] if point in free else []) as claimed:
                for _ in claimed:
                    run = self._launch.start(point)
                    self._launch.end(point, run, self._attempt(trial, run, environment, command, reported))
            if not claimed:
                pause.wait(WAIT_S)
        return status

    def _attempt(
        self, trial: Any, run: RunFolder, environment: dict[str, str], command: Command, reported: set[int]
    ) -> Outcome:
        """Start, or go on with, the point of a trial; `reported` are the steps whose losses the study has."""
        pruned = threading.Event()

        def stopping() -> bool:
            for step, loss in _evaluations(run):
                if step not in reported:
                    reported.add(step)
                    trial.report(loss, step)
                    if trial.should_prune():
                        pruned.set()
            return pruned.is_set() or self._launch.stopping

        outcome = outcome_of(run, sweep_local.run_child(command(run), run, environment, stopping))
        if pruned.is_set() and outcome.state != "finished":
            return Outcome("pruned", outcome.exit_status, f"not among the best after step {max(reported)}")
        return outcome

    def _tell(self, trial: Any, status: Status | None) -> None:
        states = self._optuna.trial.TrialState
        if status is None:
            return  # as good as lost: the next launch goes on with it
        if status.state == "finished":
            self._study.tell(trial, status.loss, skip_if_finished=True)
        elif status.state in ("diverged", "pruned"):
            # The sampler takes it for bad, and a failure for nothing.
            self._study.tell(trial, state=states.PRUNED, skip_if_finished=True)
        else:
            self._study.tell(trial, state=states.FAIL, skip_if_finished=True)

    def _again_what_was_lost(self) -> None:
        """Put trials of launches that are gone into the queue again; their points go on where they were cut off."""
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            if trial.params.keys() != self._space.keys():
                continue
            point = self._point(trial.number + 1, trial.params)
            if lease.holder(self._launch.folder.claims / point.fingerprint) is None:
                self._study.tell(trial.number, state=states.FAIL)
                self._study.enqueue_trial(dict(trial.params))


def _evaluations(run: RunFolder) -> Iterable[tuple[int, float]]:
    if run.metrics.is_file():
        yield from ((row["step"], row["eval/loss"]) for row in read_rows(run.metrics) if "eval/loss" in row)
