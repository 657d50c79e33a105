"""Image files as records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_image_file(name: str, path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the one record of an image file: its path, and as `label` the folder it lies in."""
    del keys
    yield name, {"path": str(path), "label": path.resolve().parent.name}
