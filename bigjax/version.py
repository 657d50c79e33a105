"""The version of this copy of bigjax: a clone says its own, whatever else is installed."""

import tomllib
from importlib import metadata
from pathlib import Path


def _version() -> str:
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "bigjax":
            return project["version"]
    try:
        return metadata.version("bigjax")
    except metadata.PackageNotFoundError:  # a copy of the folder, neither installed nor in its clone
        return "0+unknown"


__version__ = _version()
