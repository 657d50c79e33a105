"""The command line: `bigjax COMMAND FLAGS` does what `python -m experiments.COMMAND FLAGS` does in a clone.

The commands are those files of `bigjax.experiments` that can be run; a new one is found without being named anywhere.
"""

import ast
import difflib
import importlib
import os
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from bigjax.errors import UserError, brief

PACKAGE = "bigjax.experiments"

CAN_BE_RUN = 'if __name__ == "__main__":'


def console() -> None:
    """Be `python -m bigjax` with the same interpreter and flags, so that both find the same code and user modules.

    An installed script has its own folder where `python -m` has the working folder: a clone, or a researcher's own
    modules, would be found by one of the two only, and not by the processes that a command starts.
    """
    flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    os.execv(sys.executable, [sys.executable, *flags, "-m", "bigjax", *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names with the rest; return the exit status if it did not run."""
    program, *arguments = sys.argv if argv is None else argv
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "-help", "--help"):
        print(overview())
        return 0
    if name in ("-version", "--version"):
        from bigjax import __version__

        print(f"bigjax {__version__}")
        return 0
    found = commands()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}?" if near else "bigjax --help lists them"
        print(f"error: there is no command {brief(name)}: {hint}", file=sys.stderr)
        return UserError.exit_code
    sys.argv = [program, *arguments[1:]]
    runpy.run_module(f"{PACKAGE}.{name}", run_name="__main__", alter_sys=True)
    return 0


def overview() -> str:
    """Return what `bigjax --help` says: every command with one line."""
    found = commands()
    width = max(map(len, found))
    return "\n".join(
        [
            "bigjax: scaling experiments in JAX whose answers can be trusted.",
            "",
            "bigjax COMMAND FLAGS; bigjax COMMAND --help lists the flags of a command:",
            "",
            *(f"  {name:<{width}}  {line}" for name, line in found.items()),
            "",
            "bigjax train --config=quickstart trains a small language model on text that comes with it.",
        ]
    )


def commands() -> dict[str, str]:
    """Return every command with the first words of its help."""
    found = {}
    for path in sorted(Path(importlib.import_module(PACKAGE).__path__[0]).iterdir()):
        file = path if path.suffix == ".py" else path / "__main__.py"
        source = file.read_text(encoding="utf-8") if file.is_file() else ""
        if CAN_BE_RUN in source:
            doc = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
            found[path.stem] = re.split(r"[.:]( |$)| \(", doc, maxsplit=1)[0]
    return found


if __name__ == "__main__":
    sys.exit(main())
