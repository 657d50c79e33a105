"""The house: imports go down from room to room, never up, and never in a circle. Read off the source, every import."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.commands import ROOT

ROOMS = (
    "experiments",
    "configs",
    "__main__",
    "preflight",
    "science",
    "evaluate",
    "interop",
    "train",
    "checkpoint",
    "run",
    "tasks",
    "models",
    "data",
    "sharding",
    "mesh",
    "config",
    "params",
    "paths",
    "errors",
    "version",
    "lazy",
)
"""What lies in bigjax/, each above what it may import."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("bigjax", "experiments", "benchmarks")
    for path in (ROOT / top).rglob("*.py")
}


def imports(module: str) -> set[str]:
    """Return the modules of the project that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return (found & set(MODULES)) - {module}


IMPORTS = {module: imports(module) for module in MODULES}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_file_lies_in_a_room_that_is_named_here():
    inside = {room(module) for module in MODULES if module.startswith("bigjax.")}
    assert inside == set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_from_those_below_it_only(name):
    above = ROOMS[: ROOMS.index(name)]
    up = [
        f"{module} imports {imported}"
        for module, all_imported in IMPORTS.items()
        for imported in all_imported
        if module.startswith("bigjax.") and room(module) == name
        if not imported.startswith("bigjax.") or room(imported) in above
        if imported != "bigjax"
    ]
    assert not up


def test_no_imports_go_in_a_circle():
    # A package hands on what lies in it, so its own files do not import from it.
    order = TopologicalSorter(IMPORTS)
    order.prepare()


def test_every_room_says_what_it_is_for():
    folders = {path.parent for module, path in MODULES.items() if path.parent != ROOT}
    for folder in folders:
        first = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert first and first.split("\n")[0].endswith((".", ":", "?")), f"{folder} does not say what it is for"


def test_no_room_is_a_heap_and_no_file_repeats_its_name():
    files = defaultdict(list)
    for module, path in MODULES.items():
        if module.startswith("bigjax.") and path.name != "__init__.py":
            files[path.parent].append(path.stem)
    for folder, names in files.items():
        assert len(names) <= 20, f"{folder.relative_to(ROOT)} holds {len(names)} files"
        repeated = [name for name in names if name.startswith(f"{folder.name}_")]
        assert not repeated, f"{folder.relative_to(ROOT)} repeats its name in {repeated}"


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in MODULES.values()}
    assert not {name: length for name, length in lengths.items() if length > 360}


def test_only_the_checkpoint_room_imports_orbax():
    users = {module for module, path in MODULES.items() if "orbax" in _roots(path)}
    assert {module.split(".")[1] for module in users} == {"checkpoint"}


def _roots(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
