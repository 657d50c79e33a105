"""Steps of a user's own, in a module of their own, as `tests.prepare.own_steps:NAME`."""

import os
import signal
from pathlib import Path
from typing import Any


def short(record: dict[str, Any]) -> dict[str, Any] | None:
    """Keep records of even ids, and count their words."""
    return None if record["id"] % 2 else {**record, "words": len(record["text"].split())}


def kill_once(record: dict[str, Any]) -> dict[str, Any]:
    """Kill the process at record 50 the first time that a file can be made."""
    place = Path(os.environ["KILL_ONCE"])
    if record["id"] == 50 and not place.exists():
        place.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return record


def broken_once(record: dict[str, Any]) -> dict[str, Any]:
    """Fail at record 50 the first time that a file can be made."""
    place = Path(os.environ["KILL_ONCE"])
    if record["id"] == 50 and not place.exists():
        place.touch()
        raise OSError("broken")
    return record


def broken(record: dict[str, Any]) -> dict[str, Any]:
    """Fail."""
    raise ZeroDivisionError(record["id"])


def outside(record: dict[str, Any]) -> dict[str, Any]:
    """Name a folder outside of that of the preparation."""
    return {**record, "_side": "../out2"}


number = 5
