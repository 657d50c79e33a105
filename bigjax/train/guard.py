"""What a run does about a step that diverged: stop, go on without its update, or go back and leave its batch out."""

import math
from collections.abc import Callable
from typing import Any

from bigjax.config import Config
from bigjax.data import Batch, TextData
from bigjax.errors import UserError
from bigjax.paths import AnyPath
from bigjax.run.folder import RunFolder
from bigjax.train import forensics, rollback


class Diverged(UserError):
    """The run cannot go on as its config says. The newest checkpoint is from before the step that ended it."""

    exit_code = 3


class Guard:
    """Applies `cfg.guard` to the steps of a run. Every process calls `check` for the same steps and hears the same.

    Args:
      cfg: of the run.
      folder: of the run, open.
      text: its data, with the batches left out that `rollback.left_out` names.
      tell: says a sentence to the user.
    """

    def __init__(self, cfg: Config, folder: RunFolder, text: TextData, tell: Callable[[str], None]):
        self._cfg, self._folder, self._text, self._tell = cfg, folder, text, tell

    def check(self, step: int, batch: Batch, metrics: dict[str, Any]) -> None:
        """Wait for the metrics of `step`; if it diverged write its forensic folder and do what the config says.

        Raises:
          Diverged: the run ends here.
          RolledBack: it continues from its newest checkpoint.
        """
        finite = math.isfinite(float(metrics["loss"])) and math.isfinite(float(metrics["grad_norm"]))
        spike = bool(metrics.get("spike", False)) and self._cfg.guard.on_spike != "none"
        if finite and not spike:
            return
        event = forensics.Event(
            step=step,
            kind="spike" if finite else "non-finite",
            policy=self._cfg.guard.on_spike if finite else self._cfg.guard.on_nonfinite,
            batch=self._text.train.number(batch.step),
            left_out=self._text.train.left_out,
            **forensics.observed(metrics),
        )
        evidence = self._folder.forensics / event.name
        try:
            forensics.write(evidence, event, self._cfg, self._folder, batch, self._text)
        except OSError as error:  # what is done about the step does not depend on it
            self._tell(f"warning: {evidence} cannot be written: {error.strerror}")
        if event.policy == "skip":
            self._after_skip(event, int(metrics["skipped"]), int(metrics["skips_in_a_row"]), evidence)
        elif event.policy == "rollback":
            self._roll_back(event, evidence)
        else:
            raise Diverged(f"{event}; no checkpoint was written after it; the evidence is in {evidence}")

    def _after_skip(self, event: forensics.Event, skipped: int, in_a_row: int, evidence: AnyPath) -> None:
        limit = self._cfg.guard.max_consecutive_skips
        if in_a_row > limit:
            raise Diverged(
                f"{event}, after {limit} updates in a row were dropped (guard.max_consecutive_skips={limit}): the "
                f"parameters themselves may be the cause; the evidence is in {evidence}"
            )
        self._tell(f"{event}: its update is dropped ({skipped} so far); the evidence is in {evidence}")

    def _roll_back(self, event: forensics.Event, evidence: AnyPath) -> None:
        limit, done = self._cfg.guard.max_rollbacks, len(event.left_out)
        if done >= limit:
            raise Diverged(
                f"{event}, after {done} rollbacks (guard.max_rollbacks={limit}); no checkpoint was written after it; "
                f"the evidence is in {evidence}"
            )
        try:
            rollback.leave_out(self._folder, event.batch, event.step, event.kind)
        except OSError as error:
            raise Diverged(f"{event}; {self._folder.left_out} cannot be written: {error.strerror}") from error
        self._tell(
            f"{event}: back to the newest checkpoint, without batch {event.batch}; rollback {done + 1} of at most "
            f"{limit}; the evidence is in {evidence}"
        )
        raise rollback.RolledBack
