"""The package that a config file lies in, so that it may import the files beside it: `from . import base`."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from zlib import crc32


def package_of(file: Path) -> str | None:
    """Return the name under which the package of a config file is imported; None for a file in no package.

    That is the name that Python gives it, if it finds it under one, also inside bigjax. Two folders of one name, as the
    `configs` of two projects, are apart: the one that Python does not find is imported under a name of its own.
    """
    parts: list[str] = []
    folder = file.resolve().parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if not parts:
        return None
    top = folder / parts[0]
    for name in (parts[0], f"bigjax.{parts[0]}"):
        if _is_at(name, top):
            return ".".join([name, *parts[1:]])
    name = f"{parts[0]}_{crc32(bytes(top)):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, top / "__init__.py", submodule_search_locations=[str(top)])
        assert spec and spec.loader
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return ".".join([name, *parts[1:]])


def _is_at(name: str, folder: Path) -> bool:
    """Return whether Python finds the package `name` in this folder."""
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.submodule_search_locations is None:
        return False
    # The packages of a clone that lie beside bigjax say so once they are imported.
    places = importlib.import_module(name).__path__ if name.startswith("bigjax.") else spec.submodule_search_locations
    return any(Path(place).resolve() == folder for place in places)
