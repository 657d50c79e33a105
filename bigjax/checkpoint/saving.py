"""Saving a run and finding it again: train state, data position and identity, together in one step folder."""

import contextlib
import logging
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax

from bigjax.checkpoint import digests
from bigjax.checkpoint.failures import reason_of
from bigjax.checkpoint.reading import load_part, load_state, read_metadata, require_match
from bigjax.config import CheckpointConfig
from bigjax.errors import UserError
from bigjax.run.processes import of_all, raise_together

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp

State = TypeVar("State")

REMOVING = ".removing"
"""What the name of a step folder ends with while it is deleted."""


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
    set aside by the next `restore` or `save`: renamed to `<step>.damaged`, never deleted.
    """

    def __init__(self, folder: str | Path, cfg: CheckpointConfig):
        folder = Path(folder)
        self.folder = Path(folder).absolute()
        self._cfg = cfg
        self._writer: ocp.training.Checkpointer | None = None
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

    def save(self, step: int, state: Any, data_state: dict[str, Any], identity: dict[str, Any]) -> None:
        """Save a pytree of `jax.Array` and two JSON dicts as checkpoint `step`, then remove what is not to be kept.

        Kept are the `keep_last` newest and every multiple of `keep_every_steps`. A step that is already there is left
        alone. If `asynchronous`, this returns once the data is safe from being donated: copied off the device, or, on
        the CPU backend, borrowed in such a way that the next step copies instead of overwriting. Writing continues in
        the background; an error there is raised by the next `save`, `wait` or `close`.
        """
        self.wait()
        if step in self.steps():
            return
        response = self._open().save_checkpointables_async(
            step,
            {"state": state},
            force=True,
            custom_metadata={"data_state": data_state, "identity": identity},
        )
        if response is None:
            raise RuntimeError(f"Orbax declined to save step {step}")
        self._pending = self._background.submit(self._complete, step, response)
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
        self._close_writer()  # it would still count a step that is set aside
        step = self._sound(step)
        path = self.folder / str(step)
        saved = read_metadata(path)
        require_match(path, saved.state, abstract_state)
        return Restored(step, load_state(path, abstract_state), saved.data_state, saved.identity)

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
            self._close_writer()

    def close(self) -> None:
        """Finish the last save and release the writer's threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._close_writer()

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _complete(self, step: int, response: "ocp.AsyncResponse[bool]") -> None:
        """Wait for Orbax; then process 0 adds the digests and removes what is not to be kept. Runs in the background.

        Orbax gives the folder its final name after all processes have written their part.
        """
        response.result()
        if jax.process_index() != 0:
            return
        digests.write_digests(self.folder, step)
        every = self._cfg.keep_every_steps
        for old in self.steps()[: -self._cfg.keep_last]:
            if not every or old % every:
                # Under another name first: a kill half way through must not leave a checkpoint that looks damaged.
                shutil.rmtree((self.folder / str(old)).rename(self.folder / f"{old}{REMOVING}"))

    def _sound(self, step: int | None) -> int:
        """Return the newest sound step, or `step` if it is; every process returns, or raises, the same."""
        if step is not None and step not in self.steps():
            raise UserError(f"there is no complete checkpoint of step {step} in {self.folder}, only of {self.steps()}")
        found, problem = -1, f"process 0 found no sound checkpoint in {self.folder}"
        if jax.process_index() == 0:
            try:
                steps = digests.all_steps(self.folder) if step is None else [step]
                found, unsound = digests.newest_sound(self.folder, steps)
                for report in unsound:
                    moved = digests.set_aside(self.folder, report.step)
                    _warn(f"checkpoint {report}; it is set aside as {moved}, and step {found} is used")
            except UserError as error:
                problem = str(error)
            except OSError as error:
                found, problem = -1, f"a damaged checkpoint in {self.folder} cannot be set aside: {error}"
        found = of_all(found)[0]
        if found < 0:
            raise UserError(problem)
        return found

    def _open(self) -> "ocp.training.Checkpointer":
        if self._writer is None:
            from orbax.checkpoint import v1 as ocp

            logging.getLogger("absl").addFilter(_not_an_error_of_orbax)
            # Nobody lists the folder before it is tidy.
            _raise_together(self._tidy() if jax.process_index() == 0 else None)
            # Typed Any: Orbax's policies do not match the protocols that its own signature names.
            when: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(self._cfg.every_steps)
            # Orbax would remove older checkpoints before the new one has its digests.
            keep: Any = ocp.training.preservation_policies.PreserveAll()
            self._writer = ocp.training.Checkpointer(
                str(self.folder),
                save_decision_policy=when,
                preservation_policy=keep,
                cleanup_tmp_directories=True,
            )
        return self._writer

    def _tidy(self) -> OSError | None:
        """Finish removals that were cut short, and set aside what would be in the way of a step saved again."""
        try:
            for path in self.folder.glob(f"*{REMOVING}"):
                shutil.rmtree(path)
            for step in sorted(set(digests.all_steps(self.folder)) - set(self.steps())):
                moved = digests.set_aside(self.folder, step)
                _warn(f"checkpoint step {step}: {digests.NO_DIGESTS}; set aside as {moved}")
        except OSError as error:
            return error
        return None


def restore_part(folder: str | Path, part: str, abstract: Any, without: tuple[str, ...] = ()) -> tuple[int, Any]:
    """Load one field of the train state, such as `params`, from the newest sound checkpoint in `folder`, of any run.

    Returns its step and the field's value on the shardings of `abstract`; of a dict, not the keys in `without`. Writes
    nothing, so the run may still be training: a damaged checkpoint is passed over with a sentence on stderr, one
    without digests silently. Every process reads every byte to compare the digests.

    Raises:
      UserError: there is no complete checkpoint, or all are damaged.
      CheckpointMismatch: a path, shape or dtype differs.
      UnreadableCheckpoint: its digests agree and Orbax cannot read it.
    """
    folder = Path(folder)
    folder = Path(folder).absolute()
    step, unsound = digests.newest_sound(folder, digests.complete_steps(folder))
    for report in unsound:
        if jax.process_index() == 0:
            _warn(f"checkpoint {report}; step {step} is used")
    path = folder / str(step)
    state = read_metadata(path).state
    saved = state.get(part, {}) if isinstance(state, dict) else {}
    if without:
        trees: Any = (saved, abstract)
        saved, abstract = ({name: x for name, x in tree.items() if name not in without} for tree in trees)
    require_match(path, saved, abstract)
    return step, load_part(path, {part: abstract})[part]


def _not_an_error_of_orbax(record: logging.LogRecord) -> bool:
    """Drop what Orbax logs, with a traceback from each of its threads, before it raises the same error."""
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts


def _raise_together(error: BaseException | None) -> None:
    raise_together(error, OSError("another process could not write its part or the digests"))


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr, flush=True)
