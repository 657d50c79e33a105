"""Files by a pattern, and objects brought to the disk where only a file will do."""

import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bigjax.errors import UserError
from bigjax.paths.remote import BLOCK, AnyPath, RemotePath, as_path, is_remote
from bigjax.paths.retries import StoreError, repeated
from bigjax.paths.stores import file_system

THREADS = 8
"""How many objects are fetched at once."""


def matching(pattern: str) -> list[AnyPath]:
    """Return the files and folders that a pattern with `*`, `?`, `[]` or `**` matches, sorted; it may be a URL."""
    if is_remote(pattern):
        scheme = pattern.partition("://")[0]
        found = repeated(pattern, "listed", lambda: file_system(scheme).glob(pattern))
        return sorted(RemotePath(name if "://" in name else f"{scheme}://{name.lstrip('/')}") for name in found)
    return sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute


def fetched(files: Sequence[str | AnyPath], root: str | Path | None = None) -> list[Path]:
    """Return copies of objects on the disk, with the same names below their common folder, in the same order.

    They are fetched once for every size and time of the objects: what has changed since is fetched anew.

    Args:
        files: all in one store, or all on the disk, where they stay.
        root: the folder for copies; None: bigjax's cache folder.

    Raises:
        UserError: one of them changes meanwhile, or the copies cannot be written.
    """
    places = [as_path(file) for file in files]
    remote = [place for place in places if isinstance(place, RemotePath)]
    if not remote:
        return [place for place in places if isinstance(place, Path)]
    above = os.path.commonpath([str(place.parent).partition("://")[2] for place in remote])
    return _copies(remote, RemotePath(f"{remote[0].scheme}://{above}"), root)


def _copies(remote: Sequence[RemotePath], above: RemotePath, root: str | Path | None) -> list[Path]:
    names = [place.relative_to(above).as_posix() for place in remote]
    with ThreadPoolExecutor(THREADS, "fetch") as pool:
        found = list(pool.map(RemotePath.stat, remote))
        key = [str(above), *((name, each.st_size, each.st_mtime) for name, each in zip(names, found, strict=True))]
        version = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
        folder = (_cache() if root is None else Path(root)) / "fetched" / version
        targets = [folder / name for name in names]
        try:
            list(pool.map(_fetch, remote, targets, (each.st_size for each in found)))
        except StoreError:
            raise
        except OSError as error:
            raise UserError(f"{remote[0]} cannot be copied to {folder}: {error.strerror}") from error
    return targets


def _fetch(source: RemotePath, target: Path, size: int) -> None:
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with source.open("rb") as file, temporary.open("wb") as copy:
            shutil.copyfileobj(file, copy, BLOCK)
        if temporary.stat().st_size != size:
            raise UserError(f"{source} has changed while it was fetched: start again once it is whole")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def fetched_folder(folder: str | AnyPath, *patterns: str, root: str | Path | None = None) -> Path:
    """Return a folder on the disk with copies of the files in `folder` that match a pattern; see `fetched`.

    A folder on the disk is returned as it is, and so is one of a store with nothing that matches, as a folder that is
    not there.
    """
    folder = as_path(folder)
    if isinstance(folder, Path):
        return folder
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not found:
        return Path(f"{folder} (nothing there)")
    copy = _copies(found, folder, root)[0]
    return copy.parents[len(found[0].relative_to(folder).parts) - 1]


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named or "~/.cache").expanduser() / "bigjax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home
        return Path(tempfile.gettempdir(), f"bigjax-{os.getuid()}")
    return folder
