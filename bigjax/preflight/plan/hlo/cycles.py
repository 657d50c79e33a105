"""What the TPU compiler expects a program to cost: its own estimate of cycles, by the lines that asked for the work."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bigjax.preflight.plan.hlo.costs import NO_TRAFFIC
from bigjax.preflight.plan.hlo.module import Instruction, Module, leaves, result

ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
NO_ESTIMATE = 2**63 - 1
"""What the compiler writes where it has none."""

SCOPES = re.compile(r"(jit\(\w+\)|jvp|transpose|checkpoint|rematted_computation|closed_call|while|body|cond)?\(?\)*")
"""Parts of an operation's name that say how it was transformed, not what it is."""

WORDS = 2
"""Parts of an operation's name that are kept: `BSD,DF->BSF/dot_general`."""

LOOK_UPS = ("gather", "scatter")

FEW_BYTES = 4096
"""An instruction without an estimate is named if its result is larger: scalars cost nothing."""


@dataclass(frozen=True)
class Operation:
    """All instructions that one operation of one line became, in one execution of the program.

    Attributes:
      phase: `forward`, `recompute` (of the forward pass, in the backward pass), `backward`, `update` (what is not
        differentiated), or `other`, what the compiler put in.
      name: what is computed, as traced: `BSD,DF->BSF/dot_general`.
      source: "file.py:line", "" if unknown.
      count: instructions executed, those in loops counted as often as the loop runs. cycles: of all of them.
    """

    phase: str
    name: str
    source: str
    count: int
    cycles: int


@dataclass(frozen=True)
class Cost:
    """The compiler's estimate for one execution on one device.

    Attributes:
      cycles: of all instructions that have an estimate; None if none has (only the TPU compiler states any).
      operations: the same by operation, the most expensive first.
      not_counted: what runs without an estimate, by kind, with the number of executions: `kernel` (Pallas), `gather`,
        `scatter`, or another opcode. Collectives are not among them: nothing states what a wait for one costs.
    """

    cycles: int | None
    operations: tuple[Operation, ...]
    not_counted: dict[str, int]


def cost(module: Module) -> Cost:
    """Return the compiler's estimate: each instruction's, times the turns of the loops that it stands in.

    All branches of a conditional count, since the text does not say how often each is taken.
    """
    cycles, counts, missing = Counter(), Counter(), Counter()
    for i, times in _executed(module, module.entry, 1):
        found = ESTIMATE.search(i.notes)
        if found and int(found[1]) < NO_ESTIMATE:
            labelled = _labelled(module, i)
            key = (_phase(labelled.op_name), _name(labelled), labelled.source)
            cycles[key] += times * int(found[1])
            counts[key] += times
        elif kind := _kind(module, i):
            missing[kind] += times
    if not cycles:
        return Cost(None, (), {})
    operations = [
        Operation(phase, name, source, counts[phase, name, source], total)
        for (phase, name, source), total in cycles.most_common()
    ]
    return Cost(sum(cycles.values()), tuple(operations), dict(missing.most_common()))


def _executed(module: Module, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
    """Yield the instructions that a computation issues, in loops, branches and calls, and how often; fusions whole."""
    for i in module.computations[name]:
        yield i, times
        if i.opcode == "while":
            for called in (*i.called("condition"), *i.called("body")):
                yield from _executed(module, called, times * module.trip_counts[i.name])
        elif i.opcode == "conditional":
            for branch in module.branches(i):
                yield from _executed(module, branch.name, times)
        elif i.opcode != "fusion":
            for called in module.called(i):
                yield from _executed(module, called.name, times)


def _labelled(module: Module, i: Instruction) -> Instruction:
    """Return the instruction whose name says what `i` computes: itself, or the last named one inside its fusion."""
    inside = [inner for called in module.called(i) for inner in called if inner.op_name] if i.opcode == "fusion" else []
    return i if i.op_name or not inside else inside[-1]


def _phase(op_name: str) -> str:
    if not op_name:
        return "other"
    if "rematted_computation" in op_name:
        return "recompute"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "update"


def _name(i: Instruction) -> str:
    parts = [SCOPES.sub("", part) for part in i.op_name.split("/")]
    return "/".join([part for part in parts if part][-WORDS:]) or i.opcode


def _kind(module: Module, i: Instruction) -> str | None:
    """Return what kind of work has no estimate, None if there is next to none."""
    if i.opcode in NO_TRAFFIC or i.opcode.endswith(("-done", "-update")) or i.is_free_call:
        return None
    if i.opcode in ("custom-call", "custom-call-start"):  # a look-up may be one, on a core of its own
        called = i.op_name.rpartition("/")[2]
        return called if called in LOOK_UPS else "kernel"
    opcodes = {i.opcode} | {inner.opcode for called in module.called(i) for inner in called}
    is_collective = i.is_collective or any(inner.is_collective for called in module.called(i) for inner in called)
    if is_collective or sum(array.bytes for array in leaves(result(i))) <= FEW_BYTES:
        return None
    return next((kind for kind in LOOK_UPS if kind in opcodes), i.opcode.removesuffix("-start"))
