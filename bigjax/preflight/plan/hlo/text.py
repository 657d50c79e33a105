"""Optimised HLO text, parsed.

Reads what XLA prints for CPU, GPU and TPU (`compiled.as_text()`); the grammar is that of `xla/hlo/parser`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from bigjax.preflight.plan.hlo.loops import trip_count
from bigjax.preflight.plan.hlo.module import COUNTED_CALLS, FREE_CALLS, Array, Computation, Instruction, Module, Shape

ROOT = Path(__file__).parents[4]
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
END = re.compile(r"\}(, execution_thread=\S+)?")
INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = ")
ARRAY = re.compile(r"(\w+)\[([^\]]*)\](\{[^}]*\})?")
OPCODE = re.compile(r" ([\w\-]+)\(")
SPACE = re.compile(r"S\((\d+)\)")
HOST_MEMORY = 5
LATE = (", frontend_attributes={", ", metadata={", ", backend_config=")
"""What is printed last may quote anything, so attributes are looked for before it."""


def parse(text: str) -> Module:
    """Return the program in an HLO text; raises ValueError, in one sentence, if the text is not one."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("HloModule "):
        raise ValueError('this is not HLO text: it does not start with "HloModule"')
    tables, on_tpu = _source_tables(lines), ":T(" in text
    computations: dict[str, Computation] = {}
    entry = ""
    for is_entry, name, body in _bodies(lines):
        found = {i.name: i for i in (_instruction(line, number, tables, on_tpu) for number, line in body)}
        if not found:
            raise ValueError(f"HLO computation {name} has no instruction")
        roots = [INSTRUCTION.match(line) for _, line in body if line.startswith("ROOT ")]
        root = roots[0][2] if roots and roots[0] else list(found)[-1]
        computations[name] = Computation(name, found, found[root])
        entry = name if is_entry else entry
    if not entry:
        raise ValueError("the HLO text is cut off: it has no ENTRY computation")
    _check_references(computations)
    loops = {i.name: trip_count(computations, c, i) for c in computations.values() for i in c if i.opcode == "while"}
    alias = re.search(r"input_output_alias=\{((?: *\{\d*\}: \([^)]*\),?)*)", lines[0])
    return Module(
        computations=computations,
        entry=entry,
        scheduled="is_scheduled=true" in lines[0],
        aliased_outputs=frozenset(int(i) for i in re.findall(r"\{(\d+)\}: ", alias[1])) if alias else frozenset(),
        trip_counts={loop: 1 if trips is None else trips for loop, trips in loops.items()},
        unknown_trip_counts=tuple(loop for loop, trips in loops.items() if trips is None),
        uncounted_calls=tuple(
            f"{i.name} ({i.target})"
            for c in computations.values()
            for i in c
            if i.opcode.startswith("custom-call") and i.target and not i.target.startswith(FREE_CALLS + COUNTED_CALLS)
        ),
    )


def _bodies(lines: list[str]) -> Iterator[tuple[bool, str, list[tuple[int, str]]]]:
    """Yield every computation: whether the program starts there, its name, its instructions with their line numbers."""
    name, is_entry, body = "", False, None
    for number, line in enumerate(lines[1:], start=2):
        if body is None:
            if header := HEADER.match(line):
                is_entry, name, body = bool(header[1]), header[2], []
        elif END.fullmatch(line):
            yield is_entry, name, body
            body = None
        elif body and not line.startswith(" "):
            body[-1] = (body[-1][0], body[-1][1] + line)  # what a Pallas kernel notes about itself spans lines
        else:
            body.append((number, line.strip()))
    if body is not None:
        raise ValueError(f"the HLO text is cut off: computation {name} has no end")


def _check_references(computations: Mapping[str, Computation]) -> None:
    for computation in computations.values():
        for i in computation:
            if missing := [name for name in i.operands if name not in computation.instructions]:
                raise ValueError(f"HLO instruction {i.name} in {computation.name} uses {missing[0]}, not defined there")
            called = [name for key in ("calls", "condition", "body", "branch_computations") for name in i.called(key)]
            if missing := [name for name in called if name not in computations]:
                raise ValueError(f"HLO instruction {i.name} calls {missing[0]}, which the text does not define")


def _instruction(line: str, number: int, tables: Mapping[str, dict[int, str]], on_tpu: bool) -> Instruction:
    line = re.sub(r"/\*index=\d+\*/", "", line)
    start = INSTRUCTION.match(line)
    try:
        if start is None:
            raise IndexError
        shape, position = _shape(line, start.end(), on_tpu)
        opcode = OPCODE.match(line, position)
        if opcode is None:
            raise IndexError
        end = _closing(line, opcode.end() - 1)
    except (IndexError, KeyError, ValueError):
        raise ValueError(f"line {number} of the HLO text is not an instruction: {line[:80]!r}") from None
    inside, rest = line[opcode.end() : end], line[end + 1 :]
    cut = min((at for key in LATE if (at := rest.find(key)) >= 0), default=len(rest))
    attributes, notes = rest[:cut], rest[cut:]
    holds_literal = opcode[1] in ("parameter", "constant", "iota")
    return Instruction(
        name=start[2],
        opcode=opcode[1],
        shape=shape,
        operands=() if holds_literal else _names(inside),
        literal=inside if holds_literal else "",
        attributes=attributes,
        notes=notes,
        op_name=found[1].replace("\\'", "'") if (found := re.search(r'\bop_name="((?:[^"\\]|\\.)*)"', notes)) else "",
        source=_source(notes, tables),
    )


def _names(inside: str) -> tuple[str, ...]:
    """Return the operands of `%a, %b`, of `f32[2]{0} %a` and of `a, b`."""
    if "%" in inside:
        return tuple(re.findall(r"%([\w.\-]+)", inside))
    return tuple(part.split()[-1] for part in inside.split(",") if part.strip())


def _closing(line: str, start: int) -> int:
    """Return where the parenthesis at `start` closes."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(line, start):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return bracket.start()
    raise IndexError


def _shape(line: str, position: int, on_tpu: bool) -> tuple[Shape, int]:
    """Return the shape printed at `position` and where it ends."""
    if line[position] != "(":
        array = ARRAY.match(line, position)
        if array is None:
            raise IndexError
        space = SPACE.search(array[3] or "")
        # Elsewhere than on TPU, and for the host's memory, S(n) marks memory as large and slow as the rest.
        on_chip = on_tpu and space is not None and int(space[1]) not in (0, HOST_MEMORY)
        sizes = tuple(int(size.lstrip("<=")) for size in array[2].split(",") if size)
        return Array(array[1], sizes, on_chip), array.end()
    parts, position = [], position + 1
    while line[position] != ")":
        if line[position] in ", ":
            position += 1
            continue
        part, position = _shape(line, position, on_tpu)
        parts.append(part)
    return tuple(parts), position + 1


def _source_tables(lines: list[str]) -> dict[str, dict[int, str]]:
    """Return the tables FileNames, FileLocations and StackFrames of newer texts: their rows by id."""
    tables: dict[str, dict[int, str]] = {"FileNames": {}, "FileLocations": {}, "StackFrames": {}}
    current = None
    for line in lines:
        if row := re.match(r"(\d+) (.*)", line):
            if current is not None:
                current[int(row[1])] = row[2].strip('"')
        elif line.strip():
            current = tables.get(line.strip())
        if line.endswith("{"):
            break
    return tables


def _source(notes: str, tables: Mapping[str, dict[int, str]]) -> str:
    """Return "file.py:line" of the innermost frame, "" if unknown."""
    if (file := re.search(r'\bsource_file="([^"]*)"', notes)) and (line := re.search(r"\bsource_line=(\d+)", notes)):
        return f"{_relative(file[1])}:{line[1]}"
    frame = re.search(r"\bstack_frame_id=(\d+)", notes)
    row = tables["StackFrames"].get(int(frame[1]), "") if frame else ""
    location = re.search(r"file_location_id=(\d+)", row)
    row = tables["FileLocations"].get(int(location[1]), "") if location else ""
    place = re.search(r"file_name_id=(\d+).*?\bline=(\d+)", row)
    file_name = tables["FileNames"].get(int(place[1]), "") if place else ""
    return f"{_relative(file_name)}:{place[2]}" if place and file_name else ""


def _relative(file: str) -> str:
    """Return a path from the repository or the package on, which is the same on every machine."""
    for folder in ("site-packages/", "dist-packages/", f"{ROOT}/"):
        if folder in file:
            return file.rpartition(folder)[2]
    return Path(file).name
