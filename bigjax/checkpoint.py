"""Saving a run and finding it again: train state, data position and identity, together in one step folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import tree_util

from bigjax.config import CheckpointConfig
from bigjax.errors import UserError

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp

State = TypeVar("State")
Path_ = tuple[str, ...]

MAX_LINES = 20
"""The most differences an error lists."""


class CheckpointMismatch(UserError):
    """A checkpoint holds other arrays than the config asks for; the message has one line a difference."""


@dataclass(frozen=True)
class Restored(Generic[State]):
    """What `Checkpoints.restore` found: the state on the current mesh, and what was saved beside it."""

    step: int
    state: State
    data_state: dict[str, Any]
    identity: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, `folder/<step>`. Every process of the run calls every method, in the same order.

    Reading writes nothing: an evaluation may look into the folder of a run that is still training.
    A checkpoint whose writing was cut short is in no list; the next save removes its remains.
    """

    def __init__(self, folder: Path, cfg: CheckpointConfig):
        self.folder = Path(folder).absolute()
        self._cfg = cfg
        self._writer: ocp.training.Checkpointer | None = None
        self._pending: ocp.AsyncResponse[bool] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        return _steps(self.folder)

    def latest(self) -> int | None:
        """Return the newest step with a complete checkpoint, or None."""
        return max(self.steps(), default=None)

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
        self._pending = self._open().save_checkpointables_async(
            step,
            {"state": state},
            force=True,
            custom_metadata={"data_state": data_state, "identity": identity},
        )
        if not self._cfg.asynchronous:
            self.wait()

    def restore(self, abstract_state: State, step: int | None = None) -> Restored[State]:
        """Load checkpoint `step` (default: the newest) onto the shardings of `abstract_state`.

        `abstract_state` is a pytree of `jax.ShapeDtypeStruct` with shardings; the mesh, the number of devices and the
        number of processes may differ from those that saved. Values come back bit for bit.

        Raises:
            UserError: there is no such checkpoint.
            CheckpointMismatch: a path, shape or dtype differs.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        step = _existing(self.folder, step)
        path = self.folder / str(step)
        saved = ocp.checkpointables_metadata(str(path))
        _require_match(path, saved.metadata["state"], abstract_state)
        state = ocp.load_checkpointables(str(path), {"state": abstract_state})["state"]
        beside: Any = saved.custom_metadata
        return Restored(step, state, beside["data_state"], beside["identity"])

    def wait(self) -> None:
        """Block until the last save is complete; raise its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish the last save and release the writer's threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _open(self) -> "ocp.training.Checkpointer":
        if self._writer is None:
            from orbax.checkpoint import v1 as ocp

            # Typed Any: Orbax's policies do not match the protocols that its own signature names.
            when: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(self._cfg.every_steps)
            kept: list[Any] = [ocp.training.preservation_policies.LatestN(self._cfg.keep_last)]
            if self._cfg.keep_every_steps:
                kept.append(ocp.training.preservation_policies.EveryNSteps(self._cfg.keep_every_steps))
            keep: Any = ocp.training.preservation_policies.AnyPreservationPolicy(kept)
            self._writer = ocp.training.Checkpointer(
                str(self.folder),
                save_decision_policy=when,
                preservation_policy=keep,
                cleanup_tmp_directories=True,
            )
        return self._writer


def restore_part(folder: Path, part: str, abstract: State) -> tuple[int, State]:
    """Load one field of the train state, such as `params`, from the newest checkpoint in `folder`, of any run.

    Returns its step and the field's value on the shardings of `abstract`.

    Raises:
      UserError: there is no checkpoint.
      CheckpointMismatch: a path, shape or dtype differs.
    """
    from orbax.checkpoint import v1 as ocp

    folder = Path(folder).absolute()
    step = _existing(folder, None)
    path = folder / str(step)
    _require_match(path, ocp.checkpointables_metadata(str(path)).metadata["state"][part], abstract)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return step, ocp.load_checkpointables(str(path), {"state": {part: abstract}})["state"][part]


def _steps(folder: Path) -> list[int]:
    from orbax.checkpoint import v1 as ocp

    if not folder.is_dir():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def _existing(folder: Path, step: int | None) -> int:
    steps = _steps(folder)
    if not steps:
        raise UserError(f"there is no complete checkpoint in {folder}")
    if step is None:
        return steps[-1]
    if step not in steps:
        raise UserError(f"there is no complete checkpoint of step {step} in {folder}, only of {steps}")
    return step


def _require_match(path: Path, saved: Any, wanted: Any) -> None:
    lines = _differences(_arrays(saved), _arrays(wanted))
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} more"]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointMismatch(f"the checkpoint {path} does not hold what this config needs:\n  {listed}")


def _arrays(tree: Any) -> dict[Path_, str]:
    """Return path -> `dtype[shape]`, with the same path for an attribute, a named-tuple field and a dict key."""
    found = {}
    for path, leaf in tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # A key array is stored as its bits.
            leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        names = tuple(tree_util.keystr((entry,), simple=True) for entry in path)
        found[names] = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return found


def _differences(saved: dict[Path_, str], wanted: dict[Path_, str]) -> list[str]:
    changed = [
        f"{'/'.join(path)}: checkpoint has {saved[path]}, config wants {wanted[path]}"
        for path in wanted
        if path in saved and saved[path] != wanted[path]
    ]
    missing = [f"{what}: config wants it, checkpoint has none" for what in _only_in(wanted, saved)]
    extra = [f"{what}: checkpoint has it, config wants none" for what in _only_in(saved, wanted)]
    return changed + missing + extra


def _only_in(these: dict[Path_, str], those: dict[Path_, str]) -> list[str]:
    """Name what only `these` have; a subtree of which those have nothing is one line."""
    shared = {path[:depth] for path in those for depth in range(len(path) + 1)}
    groups: dict[Path_, list[str]] = {}
    for path, array in these.items():
        if path not in those:
            depths = (depth for depth in range(1, len(path)) if path[:depth] not in shared)
            groups.setdefault(path[: next(depths, len(path))], []).append(array)
    return [
        f"{'/'.join(path)} ({arrays[0] if len(arrays) == 1 else f'{len(arrays)} arrays'})"
        for path, arrays in groups.items()
    ]
