"""Digests of the files of a checkpoint: whether a step folder is complete, and still holds what was saved.

Orbax restores flipped bytes without a word, so `digests.json`, with the length and the SHA-256 of every file, is
written into a step folder once Orbax has finished it. A step folder without it is incomplete. The digests are of the
files as they are read back after the save: they find what happens to a checkpoint later. Imports no JAX.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigjax.errors import UserError, named
from bigjax.paths import AnyPath, RemotePath, StoreError, as_path, remove_tree
from bigjax.run.json_files import write_json

DIGESTS = "digests.json"
"""The file that makes a step folder complete: `{"step": 8, "files": {PATH: {"bytes": 17, "sha256": HEX}}}`."""

SAVING = "saving.json"
"""Marks a step folder in an object store that is being written or removed."""

BLOCK_BYTES = 4 * 2**20
"""In an object store each so many bytes of an array's object have a digest of their own, `"blocks": [HEX, ...]`."""

SET_ASIDE = ".damaged"
"""What the name of a step folder ends with once it was found unsound; if taken, `.damaged-2` and so on."""

NO_DIGESTS = f"{DIGESTS} is missing: the save was cut short, or the file was lost"

MAX_PROBLEMS = 3
"""The most files a sentence names."""


@dataclass(frozen=True)
class StepReport:
    """What `verify` found in one step folder: one phrase a problem, each naming its file; none if it is sound."""

    step: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.problems) - MAX_PROBLEMS
        said = [*self.problems[:MAX_PROBLEMS], *([f"{more} more"] if more > 0 else [])]
        return f"step {self.step}: {'; '.join(said) or 'sound'}"


def verify(checkpoints: str | AnyPath) -> list[StepReport]:
    """Check every step folder in `checkpoints`, newest first, reading every byte; what was set aside is not looked at.

    Changes nothing. A missing folder has no steps. A step that is being saved meanwhile has no digests yet.
    """
    checkpoints = as_path(checkpoints)
    return [verify_step(checkpoints, step) for step in reversed(all_steps(checkpoints))]


def verify_step(checkpoints: str | AnyPath, step: int, *, whole: bool = True) -> StepReport:
    """Check one step folder, reading every byte of it, unless `whole` is False: then no file but the digests.

    What cannot be read is a problem, not an exception; but for a store that does not answer.
    """
    checkpoints = as_path(checkpoints)
    folder = checkpoints / str(step)
    path = folder / DIGESTS
    if not path.is_file():
        return StepReport(step, (NO_DIGESTS,))
    try:
        record = json.loads(path.read_bytes())
        saved = {name: (int(file["bytes"]), _digest(file)) for name, file in record["files"].items()}
        whose = record["step"]
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return StepReport(step, (f"{DIGESTS} cannot be read: {named(error)}",))
    problems = [] if whose == step else [f"{DIGESTS} is that of step {whose}"]
    try:
        there = _files(folder)
    except StoreError:
        raise
    except OSError as error:
        return StepReport(step, (*problems, f"the folder cannot be read: {error.strerror}"))
    for name in sorted(saved.keys() | there.keys()):
        if name not in there:
            problems.append(f"{name} is missing")
        elif name not in saved:
            problems.append(f"{name} was not saved with it")
        elif problem := _problem(*there[name], *saved[name], whole):
            problems.append(f"{name} {problem}")
    return StepReport(step, tuple(problems))


def newest_sound(
    checkpoints: str | AnyPath, steps: list[int], passed: Sequence[StepReport] = ()
) -> tuple[int, list[StepReport]]:
    """Return the newest of the ascending `steps` that is sound, and the reports of those newer than it.

    In an object store no array is read for it: the files must be there, with as many bytes. Those that were `passed`,
    as an array of theirs turned out to be damaged, are left out.

    Raises:
        UserError: none is; the message lists what is wrong with each.
    """
    checkpoints = as_path(checkpoints)
    unsound, seen = [], {report.step for report in passed}
    for step in sorted(set(steps) - seen, reverse=True):
        report = verify_step(checkpoints, step, whole=not isinstance(checkpoints, RemotePath))
        if not report.problems:
            return step, unsound
        if (checkpoints / str(step)).exists():  # else its run has removed it meanwhile
            unsound.append(report)
    unsound = sorted([*passed, *unsound], key=lambda report: -report.step)
    if not unsound:
        raise UserError(f"there is no complete checkpoint in {checkpoints}")
    listed = "\n  ".join(map(str, unsound))
    raise UserError(
        f"no checkpoint in {checkpoints} can be used; put the files back, or choose another --workdir:\n  {listed}"
    )


def all_steps(checkpoints: str | AnyPath) -> list[int]:
    """Return the steps that have a folder under their final name, complete or not, ascending."""
    checkpoints = as_path(checkpoints)
    if not checkpoints.is_dir():
        return []
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal() and path.is_dir())


def complete_steps(checkpoints: str | AnyPath) -> list[int]:
    """Return the steps whose folder has its digests, ascending; no digest is compared."""
    checkpoints = as_path(checkpoints)
    return [step for step in all_steps(checkpoints) if (checkpoints / str(step) / DIGESTS).is_file()]


def write_digests(checkpoints: str | AnyPath, step: int) -> None:
    """Make the step folder complete: write the digests of all its files, whole or not at all.

    Raises:
        OSError: a file cannot be read, or the digests cannot be written.
    """
    checkpoints = as_path(checkpoints)
    folder = checkpoints / str(step)
    files = {name: _entry(path) for name, (path, _) in sorted(_files(folder).items())}
    write_json(folder / DIGESTS, {"step": step, "files": files})


def set_aside(checkpoints: str | AnyPath, step: int) -> AnyPath:
    """Rename a step folder so that nothing takes it for a checkpoint any more, and return its new path."""
    checkpoints = as_path(checkpoints)
    name, count = f"{step}{SET_ASIDE}", 1
    while (checkpoints / name).exists():
        count += 1
        name = f"{step}{SET_ASIDE}-{count}"
    if not isinstance(checkpoints, RemotePath):
        return (checkpoints / str(step)).rename(checkpoints / name)
    for path, _ in (folder := checkpoints / str(step)).files():  # copied within the store, then removed
        path.copy_to(checkpoints.joinpath(name, *path.relative_to(folder).parts))
    remove_tree(folder)
    return checkpoints / name


def _files(folder: AnyPath) -> dict[str, tuple[AnyPath, int | None]]:
    """Return the path of every file in a step folder but the digests, by its relative name, and its bytes if known."""
    if isinstance(folder, RemotePath):  # in one listing
        listed = {path.relative_to(folder).as_posix(): (path, size) for path, size in folder.files()}
        return {name: found for name, found in listed.items() if name not in (DIGESTS, SAVING)}
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    found = {path.relative_to(folder).as_posix(): (path, None) for path in files}
    return {name: path for name, path in found.items() if name not in (DIGESTS, f"{DIGESTS}.tmp")}


def _digest(entry: dict[str, Any]) -> str | list[str]:
    """Return the SHA-256 of a file, or of each `BLOCK_BYTES` of it."""
    return [str(block) for block in entry["blocks"]] if "blocks" in entry else str(entry["sha256"])


def _entry(path: AnyPath) -> dict[str, Any]:
    file: Any
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _blocks(path: AnyPath) -> list[str]:
    with path.open("rb") as file:
        return [hashlib.sha256(block).hexdigest() for block in iter(lambda: file.read(BLOCK_BYTES), b"")]


def _problem(path: AnyPath, there: int | None, size: int, digest: str | list[str], whole: bool) -> str | None:
    """Say what is wrong with a file, or None."""
    if path.is_symlink():  # it may lead anywhere
        return "is a link"
    try:
        found = path.stat().st_size if there is None else there
        if found != size:
            return f"has {found} bytes, {size} were saved" if found else f"is empty, {size} bytes were saved"
        if whole and digest != (_blocks(path) if isinstance(digest, list) else _entry(path)["sha256"]):
            return f"has other bytes than the {size} that were saved"
    except StoreError:
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None
