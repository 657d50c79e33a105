"""Errors that are the user's to mend: a command shows their message without a traceback."""


class UserError(Exception):
    """Something the user asked for cannot be done; the message says what to change. A command ends with `exit_code`."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """One or more fields of a config are wrong; the message has one sentence a line."""


def named(error: BaseException) -> str:
    """Return the kind and the message of an error, on which a `repr` may add a whole file, as of bytes not UTF-8."""
    return f"{type(error).__name__}: {error}"


def shortened(text: str) -> str:
    """Return what a user typed, cut where it is too long to be quoted in one sentence."""
    return text if len(text) <= 80 else f"{text[:77]}..."
