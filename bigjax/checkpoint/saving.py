"""Saving a run and finding it again: train state, data position and identity, together in one step folder."""

import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax

from bigjax.checkpoint import digests
from bigjax.checkpoint.blocks import DamagedCheckpoint
from bigjax.checkpoint.failures import reason_of
from bigjax.checkpoint.objects import ObjectFiles
from bigjax.checkpoint.orbax_files import OrbaxFiles
from bigjax.checkpoint.reading import load_part, load_state, read_metadata, require_match
from bigjax.config import CheckpointConfig
from bigjax.errors import UserError
from bigjax.paths import AnyPath, RemotePath, as_path
from bigjax.run.processes import agreed, of_all, raise_together

State = TypeVar("State")


@dataclass(frozen=True)
class Restored(Generic[State]):
    """What `Checkpoints.restore` found: the state on the current mesh, and what was saved beside it."""

    step: int
    state: State
    data_state: dict[str, Any]
    identity: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, `folder/<step>`. Every process of the run calls every method, in the same order.

    A checkpoint is complete, and in a list, from the moment its digests are written: last of all, by process 0, in the
    background, as soon as the files of all processes are in place. Only then are older ones removed, so that at any
    moment a kill leaves the newest complete one. The remains of a save that was cut short are removed by the next save
    while Orbax still calls them temporary; later they cannot be told from a checkpoint whose digests were lost, and are
    set aside by the next `restore` or `save`: renamed to `<step>.damaged`, never deleted. The same holds in an object
    store (`objects`), where what is damaged is found as it is read.
    """

    def __init__(self, folder: str | AnyPath, cfg: CheckpointConfig):
        place = as_path(folder).absolute()
        self.folder: AnyPath = place
        self._cfg = cfg
        self._files = ObjectFiles(place) if isinstance(place, RemotePath) else OrbaxFiles(place, cfg)
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.close()
            return
        # The error under way is the one to show, and the other processes may not get here to be waited for.
        if self._pending is not None and (failed := self._pending.exception()):
            _warn(f"the last checkpoint could not be saved: {reason_of(failed)}")
        self.recover()
        self._background.shutdown()

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        return digests.complete_steps(self.folder)

    def latest(self) -> int | None:
        """Return the newest step with a complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def resumable(self) -> bool:
        """Return whether the run has anything to continue from, be it damaged.

        A single step folder without digests is nothing: that is how a kill during the first save leaves the folder.
        """
        return bool(self.steps()) or len(digests.all_steps(self.folder)) > 1

    def should_save(self, step: int) -> bool:
        """Return whether `every_steps` asks for a checkpoint after `step` steps."""
        return step > 0 and step % self._cfg.every_steps == 0

    def save(
        self,
        step: int,
        state: Any,
        data_state: dict[str, Any],
        identity: dict[str, Any],
        *,
        first: Callable[[], None] | None = None,
    ) -> None:
        """Save a pytree of `jax.Array` and two JSON dicts as checkpoint `step`, then remove what is not to be kept.

        Kept are the `keep_last` newest and every multiple of `keep_every_steps`. A step that is already there is left
        alone. If `asynchronous`, this returns once the data is safe from being donated: copied off the device, or, on
        the CPU backend, borrowed in such a way that the next step copies instead of overwriting. Writing continues in
        the background; an error there is raised by the next `save`, `wait` or `close`. The checkpoint is complete only
        after `first` has returned, which process 0 calls there.
        """
        self.wait()
        if step in self.steps():
            return
        self._open()
        response = self._files.start(step, state, {"data_state": data_state, "identity": identity})
        self._pending = self._background.submit(self._complete, step, response, first)
        if not self._cfg.asynchronous:
            self.wait()

    def restore(self, abstract_state: State, step: int | None = None) -> Restored[State]:
        """Load checkpoint `step` (default: the newest that is sound) onto the shardings of `abstract_state`.

        `abstract_state` is a pytree of `jax.ShapeDtypeStruct` with shardings; the mesh, the number of devices and the
        number of processes may differ from those that saved. Values come back bit for bit. Process 0 first reads every
        byte of the checkpoint to compare its digests. Without `step`, damaged or incomplete checkpoints newer than the
        one used are set aside, with a sentence on stderr each; if none is sound, nothing is renamed.

        Raises:
            UserError: there is no such checkpoint, or it is damaged, or all are; the message lists what is wrong.
            CheckpointMismatch: a path, shape or dtype differs.
            UnreadableCheckpoint: its digests agree and Orbax cannot read it; nothing is renamed, for it is not damaged.
        """
        self.wait()
        self._files.close()  # it would still count a step that is set aside
        passed: list[digests.StepReport] = []
        while True:
            found, damage, restored = self._sound(step, passed), "another process found it damaged", None
            path = self.folder / str(found)
            try:
                saved = read_metadata(path)
                require_match(path, saved.state, abstract_state)
                state = load_state(path, abstract_state)
                restored = Restored(found, state, saved.data_state, saved.identity)
            except DamagedCheckpoint as error:  # in an object store alone, which is not read twice
                damage = str(error)
            if not agreed(restored is None) and restored is not None:
                break
            passed.append(digests.StepReport(found, (damage,)))
        raise_together(
            self._set_aside(passed, restored.step) if jax.process_index() == 0 else None,
            OSError("a damaged checkpoint cannot be set aside"),
        )
        return restored

    def wait(self) -> None:
        """Block until the last save is complete on all processes; raise its error if it failed.

        Raises:
            OSError: it failed on another process only.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            _raise_together(pending.exception())

    def recover(self) -> None:
        """Forget a save that failed: the next one starts afresh, and removes its remains."""
        # Orbax raises the error of the failed save once more, which the caller has seen.
        with contextlib.suppress(Exception):
            self._files.close()

    def close(self) -> None:
        """Finish the last save and release the writer's threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._files.close()

    def _complete(self, step: int, response: Any, first: Callable[[], None] | None) -> None:
        """Wait until all processes have written their part; then process 0 adds the digests and removes what is not to
        be kept. Runs in the background.
        """
        response.result()
        if jax.process_index() != 0:
            return
        if first is not None:
            first()
        self._files.finish(step)
        every = self._cfg.keep_every_steps
        for old in self.steps()[: -self._cfg.keep_last]:
            if not every or old % every:
                self._files.remove(old)

    def _sound(self, step: int | None, passed: list[digests.StepReport]) -> int:
        """Return the newest sound step that is not `passed`, or `step` if it is; every process returns, or raises, the
        same.
        """
        if step is not None and step not in self.steps():
            raise UserError(f"there is no complete checkpoint of step {step} in {self.folder}, only of {self.steps()}")
        found, problem = -1, f"process 0 found no sound checkpoint in {self.folder}"
        if jax.process_index() == 0:
            try:
                steps = digests.all_steps(self.folder) if step is None else [step]
                found, unsound = digests.newest_sound(self.folder, steps, passed)
                if isinstance(self.folder, RemotePath):
                    passed.extend(unsound)
                elif (error := self._set_aside(unsound, found)) is not None:
                    found, problem = -1, str(error)
            except UserError as error:
                problem = str(error)
        found = of_all(found)[0]
        if found < 0:
            raise UserError(problem)
        return found

    def _set_aside(self, unsound: list[digests.StepReport], used: int) -> UserError | None:
        """Set damaged checkpoints aside, and say so; return why that cannot be done."""
        try:
            for report in unsound:
                moved = digests.set_aside(self.folder, report.step)
                _warn(f"checkpoint {report}; it is set aside as {moved}, and step {used} is used")
        except OSError as error:
            return UserError(f"a damaged checkpoint in {self.folder} cannot be set aside: {error}")
        return None

    def _open(self) -> None:
        if not self._files.is_open():
            # Nobody lists the folder before it is tidy.
            _raise_together(self._tidy() if jax.process_index() == 0 else None)
            self._files.open()

    def _tidy(self) -> OSError | None:
        """Finish removals that were cut short, and set aside what would be in the way of a step saved again."""
        try:
            self._files.tidy()
            for step in sorted(set(digests.all_steps(self.folder)) - set(self.steps())):
                moved = digests.set_aside(self.folder, step)
                _warn(f"checkpoint step {step}: {digests.NO_DIGESTS}; set aside as {moved}")
        except OSError as error:
            return error
        return None


def restore_part(folder: str | AnyPath, part: str, abstract: Any, without: tuple[str, ...] = ()) -> tuple[int, Any]:
    """Load one field of the train state, such as `params`, from the newest sound checkpoint in `folder`, of any run.

    Returns its step and the field's value on the shardings of `abstract`; of a dict, not the keys in `without`. Writes
    nothing, so the run may still be training: a damaged checkpoint is passed over with a sentence on stderr, one
    without digests silently. Every process reads every byte to compare the digests.

    Raises:
      UserError: there is no complete checkpoint, or all are damaged.
      CheckpointMismatch: a path, shape or dtype differs.
      UnreadableCheckpoint: its digests agree and Orbax cannot read it.
    """
    folder, passed = as_path(folder).absolute(), list[digests.StepReport]()
    while True:
        step, unsound = digests.newest_sound(folder, digests.complete_steps(folder), passed)
        path = folder / str(step)
        for report in unsound:
            if jax.process_index() == 0:
                _warn(f"checkpoint {report}; step {step} is used")
        try:
            return step, _load_field(path, part, abstract, without)
        except DamagedCheckpoint as error:  # in an object store alone, which is not read twice
            passed.append(digests.StepReport(step, (str(error),)))
            if jax.process_index() == 0:
                _warn(f"checkpoint {passed[-1]}; an older one is used")


def _load_field(path: AnyPath, part: str, abstract: Any, without: tuple[str, ...]) -> Any:
    state = read_metadata(path).state
    saved = state.get(part, {}) if isinstance(state, dict) else {}
    if without:
        trees: Any = (saved, abstract)
        saved, abstract = ({name: x for name, x in tree.items() if name not in without} for tree in trees)
    require_match(path, saved, abstract)
    return load_part(path, {part: abstract})[part]


def _raise_together(error: BaseException | None) -> None:
    raise_together(error, OSError("another process could not write its part or the digests"))


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr, flush=True)
