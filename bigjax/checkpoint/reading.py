"""Reading one checkpoint whose digests agree: what Orbax makes of its files, or one sentence that says why it cannot.

Files may be what was saved and still be of no use: written by a version that Orbax has left behind, or put together by
hand. Orbax says so in many words, of which few name the cause: `KeyError`s, warnings with an empty result, asyncio
tasks that nobody waits for. Here each becomes an `UnreadableCheckpoint`.
"""

import asyncio
import dataclasses
import functools
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import tree_util

from bigjax.checkpoint import objects
from bigjax.errors import UserError
from bigjax.paths import AnyPath, RemotePath, as_path

State = TypeVar("State")
Path_ = tuple[str, ...]

MAX_LINES = 20
"""The most differences an error lists."""

MAX_REASON = 200
"""The most characters of what Orbax says that a sentence quotes."""

NOT_THE_FILES = (MemoryError, jax.errors.JaxRuntimeError)
"""What may end a read of sound files."""


class CheckpointMismatch(UserError):
    """A checkpoint holds other arrays than the config asks for; the message has one line a difference."""


class UnreadableCheckpoint(UserError):
    """The files of a checkpoint are those that its digests are of, but Orbax cannot read them."""

    def __init__(self, path: AnyPath, reason: str):
        version = importlib.metadata.version("orbax-checkpoint")
        super().__init__(
            f"the checkpoint {path} cannot be read, though its digests agree: {reason}. Either another version of "
            f"orbax-checkpoint than {version} wrote it (environment.json in the run folder names it), or its files "
            f"were changed, and their digests too; to go on from an older one, rename it to {path.name}.unreadable"
        )


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of itself: the shapes and dtypes of its state, and what was saved beside it."""

    state: Any
    data_state: dict[str, Any]
    identity: dict[str, Any]


def read_metadata(path: str | AnyPath) -> Saved:
    """Return what the step folder `path` holds, without loading any array.

    Raises:
      UnreadableCheckpoint: Orbax cannot read it.
      DamagedCheckpoint: it lies in an object store, and what is read of it is not what was saved.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        record = objects.described(path)
        return Saved(objects.shapes(record), record["data_state"], record["identity"])
    from orbax.checkpoint import v1 as ocp

    found, logged = _read(path, lambda: ocp.checkpointables_metadata(str(path)))
    beside: Any = found.custom_metadata
    for name in ("data_state", "identity"):
        if not isinstance(beside, dict) or not isinstance(beside.get(name), dict):
            raise UnreadableCheckpoint(path, f"its _CHECKPOINT_METADATA has no {name}")
    state = found.metadata.get("state")
    if state is None:
        raise UnreadableCheckpoint(path, _shortened(logged[-1] if logged else "it holds no state"))
    return Saved(state, beside["data_state"], beside["identity"])


def load_state(path: str | AnyPath, abstract: State) -> State:
    """Load a whole state. A field that is None takes nothing, so it may have been unknown when the state was saved.

    Raises:
      UnreadableCheckpoint: Orbax cannot read it.
      DamagedCheckpoint: it lies in an object store, and what is read of it is not what was saved.
    """
    path = as_path(path)
    names = [field.name for field in dataclasses.fields(abstract)] if dataclasses.is_dataclass(abstract) else []
    wanted = {name: getattr(abstract, name) for name in names if getattr(abstract, name) is not None}
    loaded: Any = load_part(path, wanted or abstract)
    return dataclasses.replace(cast(Any, abstract), **loaded) if wanted else loaded


def load_part(path: str | AnyPath, abstract: Any) -> Any:
    """Load those arrays of the step folder `path` that `abstract` has, onto its shardings.

    Raises:
      UnreadableCheckpoint: Orbax cannot read them.
      DamagedCheckpoint: as `read_metadata`.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        return objects.load(path, abstract)
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return _read(path, lambda: ocp.load_checkpointables(str(path), {"state": abstract})["state"])[0]


def read_data_state(folder: str | AnyPath, step: int) -> dict[str, Any]:
    """Return where the data stood at checkpoint `step`, without loading any array; no digest is compared."""
    return read_metadata(as_path(folder).absolute() / str(step)).data_state


def _read(path: AnyPath, call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what `call` returns and what Orbax logs meanwhile, which nobody sees.

    Raises:
      UnreadableCheckpoint: for whatever Orbax raises.
    """
    _ignore_what_is_left_over()
    logged: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if of_orbax := "orbax" in Path(record.pathname).parts and record.levelno >= logging.WARNING:
            logged.append(record.getMessage())
        return not of_orbax

    logging.getLogger("absl").addFilter(keep)
    try:
        return call(), logged
    except Exception as error:
        causes = list(_causes(error))
        if any(not isinstance(cause, Exception) or isinstance(cause, NOT_THE_FILES) for cause in causes):
            raise
        reason = f"{type(causes[-1]).__name__}: {causes[-1]}"
    finally:
        logging.getLogger("absl").removeFilter(keep)
    raise UnreadableCheckpoint(path, _shortened(reason))


@functools.cache
def _ignore_what_is_left_over() -> None:
    """From now on, say nothing of the reads that Orbax gives up when another one fails.

    TensorStore ends them at any later time. Then asyncio logs that nobody looked at their errors, and the interpreter
    that they could not be raised or were never awaited, each with a traceback. Nothing else here uses asyncio.
    """
    hook = sys.unraisablehook

    def unraisable(found: "sys.UnraisableHookArgs") -> None:
        code, closed = getattr(found.object, "cr_code", None), str(found.exc_value) == "Event loop is closed"
        if not closed and (code is None or "orbax" not in Path(code.co_filename).parts):
            hook(found)

    sys.unraisablehook = unraisable
    warnings.filterwarnings("ignore", r"coroutine '_read_\w+' was never awaited", RuntimeWarning)
    never = "Task exception was never retrieved"
    logging.getLogger(asyncio.__name__).addFilter(lambda record: not record.getMessage().startswith(never))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _shortened(reason: str) -> str:
    """Return the gist of what Orbax says: the error it gives as a detail, on one line."""
    line = " ".join(reason.rpartition("Error details: ")[2].split())
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}..."


def require_match(path: str | AnyPath, saved: Any, wanted: Any) -> None:
    """Raise CheckpointMismatch unless two trees have the same paths, shapes and dtypes."""
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
        names = tuple(tree_util.keystr((entry,), simple=True) for entry in path)
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):  # of a tree that is none of ours
            found[names] = "no array"
            continue
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # A key array is stored as its bits.
            leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
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
