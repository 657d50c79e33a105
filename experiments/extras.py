"""Packages that only some commands need."""

import importlib
from typing import Any

from bigjax.errors import UserError


def load(module: str, extra: str, what: str) -> Any:
    """Return a package of an optional extra, which `what` needs.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{what} needs {module}: pip install 'bigjax[{extra}]'") from None
