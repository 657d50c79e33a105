"""The configs that come with bigjax, by name from any folder: `quickstart`, `llama:8b`, `sweeps/lr_width`."""

import difflib
import importlib
import re
from pathlib import Path

_NAME = re.compile(r"\w[\w-]*(/\w[\w-]*)*")


def located(source: str | Path) -> str:
    """Return `NAME[:ARG]` of a shipped config as `FILE[:ARG]`; whatever else it may be as it is.

    A file of the user's that is called so comes first, and so does the folder of a run.
    """
    source = str(source)
    name, colon, argument = source.partition(":")
    if not _NAME.fullmatch(name) or Path(name).is_file() or Path(name, "config.json").is_file():
        return source
    path = _all().get(name)
    return source if path is None else f"{path}{colon}{argument}"


def nearest(file: str) -> str | None:
    """Return the name of a shipped config that a name or a file that is not there may have meant."""
    plain = file.removesuffix(".py").removesuffix(".json").removeprefix("configs/")
    return next(iter(difflib.get_close_matches(plain, _all(), n=1)), None)


def _all() -> dict[str, Path]:
    """Return every shipped config by name."""
    folder = Path(importlib.import_module("bigjax.configs").__path__[0])
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".json") and path.stem != "__init__"]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
