"""Errors that are the user's to mend: a command shows their message without a traceback."""

import reprlib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what to change. A command ends with `exit_code`."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """One or more fields of a config are wrong; the message has one sentence a line."""


def named(error: BaseException) -> str:
    """Return the kind and the message of an error, on which a `repr` may add a whole file, as of bytes not UTF-8."""
    return f"{type(error).__name__}: {error}"


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60
_BRIEF.maxlevel, _BRIEF.maxlist = 2, 12


def brief(value: object, limit: int = 200) -> str:
    """Return the `repr` of a value of the user's, cut short: a text or a table in it may be of any size."""
    said = _BRIEF.repr(value)
    return said if len(said) <= limit else f"{said[:limit]}..."


def listed(names: Iterable[str], limit: int = 10, width: int = 60) -> str:
    """Return the first of some names of the user's, each cut to `width` characters, and how many there are besides."""
    found = list(names)
    rest = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(name if len(name) <= width else f"{name[:width]}..." for name in found[:limit]) + rest
