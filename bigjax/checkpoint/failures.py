"""Why a save failed, in the words of the operating system."""

import os
import re

MAX_REASON = 300
"""The most characters of an error that a sentence quotes."""


def reason_of(error: BaseException) -> str:
    """Return what the operating system said, whichever of many calls met it first, or else what the error says.

    TensorStore says it at the end of a line that begins with paths, and a save writes with TensorStore and without.
    """
    stated = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) and error.errno else int(stated[1]) if stated else None
    if number is not None:
        return os.strerror(number)
    return (next(iter(str(error).splitlines()), "") or repr(error))[:MAX_REASON]
