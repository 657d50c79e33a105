"""JSON that every reader accepts, written so that no reader sees half of it."""

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any

from bigjax.errors import UserError, named
from bigjax.paths import AnyPath, as_path, write_whole


def dumps(value: Any) -> str:
    """Return `value` as one line of JSON; NaN and infinities become the strings "NaN", "Infinity" and "-Infinity".

    JSON has no such numbers. The strings keep the three apart, and `float()` reads each of them back.

    Raises:
        TypeError: `value` holds something that JSON cannot, such as an array.
    """
    return json.dumps(_finite(value), allow_nan=False)


@contextlib.contextmanager
def reading(path: str | AnyPath) -> Iterator[None]:
    """Make whatever is wrong with a file that is read and taken apart here a UserError that names it."""
    path = as_path(path)
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is damaged ({named(error)})"
        raise UserError(f"{path} cannot be read: {reason}; put the file back") from error


def write_json(path: str | AnyPath, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all.

    Raises:
        TypeError: as in `dumps`; the file is left as it was.
    """
    write_text(path, json.dumps(_finite(value), allow_nan=False, indent=2) + "\n")


def write_text(path: str | AnyPath, text: str) -> None:
    """Write `text` to `path`, whole or not at all: a reader, or a crash, meets the old file or the new one."""
    write_whole(path, text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
