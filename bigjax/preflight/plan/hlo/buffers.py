"""The largest arrays of a compiled program, and the lines that make them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bigjax.preflight.plan.hlo.module import Array, Computation, Instruction, Module, leaves, result

NO_BUFFER = {
    "add-dependency",
    "after-all",
    "bitcast",
    "bitcast-convert",
    "conditional",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "send",
    "tuple",
    "while",
}
"""Instructions that allocate nothing."""


@dataclass(frozen=True)
class Buffer:
    """An array in memory: `bytes` on one device, `source` "file.py:line" or "" if unknown."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    op_name: str
    source: str


def largest_buffers(module: Module, limit: int = 10) -> list[Buffer]:
    """Return the largest arrays that one device stores in its main memory at some time, the largest first.

    Parameters of the program, and results of instructions outside fusions, tuples taken apart. What is written over
    another array is not an array of its own: results of loops, slices updated in place, outputs in the place of a
    donated parameter. Not all of them live at once. An array that several instructions hand on, in one shape and under
    one name, counts once.
    """
    arrays = [
        (array, position, i, computation)
        for computation in _reached(module)
        for i, position, array in _allocated(module, computation)
    ]
    arrays.sort(key=lambda entry: (-entry[0].bytes, entry[2].name, entry[1]))
    buffers: dict[tuple, Buffer] = {}
    for array, position, i, computation in arrays:
        name = i.name if isinstance(result(i), Array) else f"{i.name}{{{position}}}"
        origin = _origin(module, computation, i, position)
        same = (origin.op_name or name, origin.source, array.dims, array.dtype)
        buffers.setdefault(same, Buffer(name, array.dims, array.dtype, array.bytes, origin.op_name, origin.source))
        if len(buffers) == limit:
            break
    return list(buffers.values())


def _allocated(module: Module, computation: Computation) -> Iterator[tuple[Instruction, int, Array]]:
    """Yield the arrays in main memory that the instructions of a computation need, by instruction and position."""
    is_entry = computation.name == module.entry
    skipped = _donated(module, computation) if is_entry else set()
    for i in computation:
        if i.opcode in NO_BUFFER or i.opcode.endswith(("-done", "-update")):
            continue
        if (i.opcode == "parameter" and not is_entry) or (i.opcode != "fusion" and module.called(i)):
            continue
        for position, array in enumerate(leaves(result(i))):
            taken = array.on_chip or (i.name, position) in skipped or _is_in_place(module, computation, i, position)
            if not taken:
                yield i, position, array


def _reached(module: Module) -> list[Computation]:
    """Return the computations whose instructions have arrays of their own: not fusions nor scalar functions."""
    reached, queue = {}, [module.computations[module.entry]]
    while queue:
        computation = queue.pop()
        if computation.name in reached:
            continue
        reached[computation.name] = computation
        for i in computation:
            if i.opcode != "fusion":
                queue += module.called(i) + module.branches(i)
                queue += [module.computations[name] for key in ("condition", "body") for name in i.called(key)]
    return list(reached.values())


def _donated(module: Module, entry: Computation) -> set[tuple[str, int]]:
    """Return the results, by instruction and position, that become outputs in the place of a donated parameter."""
    outputs = entry.operands(entry.root) if entry.root.opcode == "tuple" else []
    found = set()
    for position in module.aliased_outputs:
        output, index = (outputs[position], 0) if position < len(outputs) else (entry.root, position)
        while output.opcode in ("bitcast", "get-tuple-element", "copy-done"):
            index = output.index if output.opcode == "get-tuple-element" else index
            output = entry.operands(output)[0]
        if output.opcode != "parameter":
            found.add((output.name, index))
    return found


def _is_in_place(module: Module, computation: Computation, i: Instruction, position: int) -> bool:
    """Return whether a result lies where an operand lay, which the text says, or is an update of one."""
    while i.opcode in ("bitcast", "fusion", "tuple"):
        if i.opcode == "fusion":
            output = "{}" if isinstance(i.shape, Array) else f"{{{position}}}"
            if re.search(rf"output_to_operand_aliasing=.*{re.escape(output)}: \(", i.attributes):
                return True
            (computation,) = module.called(i)
            i = computation.root
        else:
            i = computation.operands(i)[position if i.opcode == "tuple" else 0]
    return i.opcode in ("dynamic-update-slice", "scatter")


def _origin(module: Module, computation: Computation, i: Instruction, position: int) -> Instruction:
    """Return the instruction whose name and line say what an array holds: itself, if it has a line.

    What has none is often the room that a loop fills piece by piece, such as the activations kept for the backward
    pass, or a copy of that: then it is what the loop stores.
    """
    if i.source or i.opcode == "parameter":
        return i
    arrays = [i.name]
    if isinstance(result(i), tuple):
        arrays = [part.name for part in computation.users(i.name) if part.index == position]
    for name in arrays:
        for user in computation.users(name):
            for loop in computation.users(user.name) if user.opcode == "tuple" else ():
                if loop.opcode == "while":
                    return _stored(module, loop, user.operands.index(name)) or i
    source = computation.operands(i)[0] if i.opcode == "copy" else i
    if source.index >= 0 and (loop := computation.operands(source)[0]).opcode == "while":
        return _stored(module, loop, source.index) or i
    return source if source.source else i


def _stored(module: Module, loop: Instruction, index: int) -> Instruction | None:
    """Return what a loop writes into part `index` of its state, None if the text has no line for it."""
    body = module.computations[loop.called("body")[0]]
    stored = body.operands(body.root)[index] if body.root.opcode == "tuple" else body.root
    if stored.index >= 0:
        stored = body.operands(stored)[0]
    candidates = [stored]
    if stored.opcode == "fusion":
        (fused,) = module.called(stored)
        for update in (fused.operands(i)[1] for i in fused if i.opcode == "dynamic-update-slice"):
            while update.opcode in ("bitcast", "copy", "convert", "reshape", "broadcast"):
                update = fused.operands(update)[0]
            candidates.append(body.operands(stored)[int(update.literal)] if update.opcode == "parameter" else update)
    return next((i for i in reversed(candidates) if i.source), None)
