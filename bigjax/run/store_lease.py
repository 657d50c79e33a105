"""A `lease` in an object store, where no file can be locked, and no clock but the store's is shared.

The lease PATH is an object `PATH/NUMBER`, made only if there is none of that name. Whoever takes it over from an owner
that is gone makes the next number. One that has made its object looks once more, and gives it up if there is another
that it did not know to be gone: of two that race, at least the later one sees the other. Its owner writes its object
anew again and again, which sets the object's time; how old that is, the store's own clock says.
"""

import contextlib
import json
import os
import random
import sys
import time
import uuid
from typing import Any

from bigjax.paths import RemotePath
from bigjax.run.heartbeat import LOST

Owner = dict[str, Any]

_mine: dict[RemotePath, tuple[RemotePath, bytes]] = {}
"""The leases of this process: the object of each, and what it holds."""


def take(path: RemotePath, mine: Owner, is_stale: Any) -> tuple[Owner, Owner | None, Owner | None]:
    """Become the owner of `path` if nobody lives who is; return this owner, the one that is gone, the one that lives.

    Args:
        mine: what this process says of itself.
        is_stale: of an owner and its object, whether it is gone.
    """
    while True:
        known, gone = _objects(path), None
        for found in known:
            owner = owner_in(found)
            if owner is not None and not is_stale(owner, found):
                return mine, None, owner
            gone = owner or gone
        number = int(known[-1].name) + 1 if known else 1
        claimed = mine | {"nonce": uuid.uuid4().hex}
        target, data = path / f"{number:06d}", json.dumps(claimed).encode()
        if not target.create(data):
            continue
        if set(_objects(path)) - set(known) != {target}:
            target.unlink(missing_ok=True)
            time.sleep(random.uniform(0.1, 1.0))
            continue
        for found in known:
            found.unlink(missing_ok=True)
        _mine[path] = (target, data)
        return claimed, gone, None


def release(path: RemotePath, owner: Owner) -> None:
    """Remove the lease if it is this process that has it."""
    target, data = _mine.pop(path, (None, b""))
    if target is not None and json.loads(data) == owner:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)


def holder(path: RemotePath, is_stale: Any) -> Owner | None:
    """Return the owner of a lease if it lives."""
    for found in _objects(path):
        owner = owner_in(found)
        if owner is not None and not is_stale(owner, found):
            return owner
    return None


def renew(path: RemotePath) -> None:
    """Say that the owner of a lease lives: two requests. If another has taken it over, end this process at once.

    It was taken for gone, as after a long sleep of its machine, and must not write what is another's now.
    """
    if path not in _mine:
        return
    target, data = _mine[path]
    if _objects(path)[-1:] == [target]:
        target.write_bytes(data)
    elif path in _mine:  # it was not let go just now
        print(f"error: {path.parent} was taken over by another process, as this one gave no sign of life for long",
              file=sys.stderr, flush=True)  # fmt: skip
        os._exit(LOST)


def age(path: RemotePath, found: RemotePath) -> float:
    """Return how many seconds ago an object was written, by the clock of its store."""
    clock = path / f"clock-{uuid.uuid4().hex}"
    clock.write_bytes(b".")
    try:
        return clock.stat().st_mtime - found.stat().st_mtime
    finally:
        clock.unlink(missing_ok=True)


def owner_in(found: RemotePath) -> Owner | None:
    """Return the owner that an object names; None where it went meanwhile."""
    try:
        return dict(json.loads(found.read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def _objects(path: RemotePath) -> list[RemotePath]:
    return [found for found, _ in path.files() if found.name.isdecimal()]
