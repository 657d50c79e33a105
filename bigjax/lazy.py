"""Names that a package hands on, imported when they are first used: importing the package stays cheap."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def handing_on(package: str, modules: Mapping[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], list[str]]:
    """Return the `__getattr__` (PEP 562) and the `__all__` of a package that hands on names of some modules.

    Args:
      package: its `__name__`.
      modules: module -> the names it defines; no name for the module itself, under its last part.
    """
    homes = {name: module for module, names in modules.items() for name in names or (module.rpartition(".")[2],)}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(homes[name])
        return module if homes[name].endswith(f".{name}") and not modules[homes[name]] else getattr(module, name)

    return get, sorted(homes)


def function(place: str) -> Callable[..., Any]:
    """Return the function at `module:NAME`; its module is imported when the function is first called."""
    module, _, name = place.partition(":")

    def call(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **options)

    return call
