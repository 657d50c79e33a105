"""Files by a pattern, and objects brought to the disk where only a file will do."""

import glob
import hashlib
import os
from pathlib import Path

from bigjax.errors import UserError
from bigjax.paths.remote import BLOCK, AnyPath, RemotePath, as_path, is_remote
from bigjax.paths.retries import repeated
from bigjax.paths.stores import file_system


def matching(pattern: str) -> list[AnyPath]:
    """Return the files and folders that a pattern with `*`, `?`, `[]` or `**` matches, sorted; it may be a URL."""
    if is_remote(pattern):
        scheme = pattern.partition("://")[0]
        found = repeated(pattern, "listed", lambda: file_system(scheme).glob(pattern))
        return sorted(RemotePath(name if "://" in name else f"{scheme}://{name.lstrip('/')}") for name in found)
    return sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute


def fetched(path: str | AnyPath, root: Path) -> Path:
    """Return a copy of an object on the disk, below `root`, under its own name; of a path on a disk, that itself.

    It is fetched once for every size and time of the object: what has changed since is fetched anew.
    """
    path = as_path(path)
    if isinstance(path, Path):
        return path
    status = path.stat()
    version = hashlib.sha256(f"{path}\0{status.st_size}\0{status.st_mtime}".encode()).hexdigest()[:24]
    target = root / "fetched" / version / path.name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        with path.open("rb") as source, temporary.open("wb") as copy:
            while block := source.read(BLOCK):
                copy.write(block)
        if temporary.stat().st_size != status.st_size:
            raise UserError(f"{path} has changed while it was fetched: start again once it is whole")
        temporary.replace(target)
    return target
