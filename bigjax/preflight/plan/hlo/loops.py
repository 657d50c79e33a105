"""How often the while loops of a compiled program run."""

import re
from collections.abc import Mapping

from bigjax.preflight.plan.hlo.module import Computation, Instruction

COPIES = ("copy", "bitcast", "convert", "copy-start", "copy-done", "reshape")


def trip_count(computations: Mapping[str, Computation], parent: Computation, loop: Instruction) -> int | None:
    """Return how often a while loop runs, None if that depends on data or cannot be read.

    The compiler says so, or the condition asks whether a counter is less than a constant. Where the text does not show
    otherwise, the counter starts at 0 and steps by 1, as those of `lax.scan` do.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.notes):
        return int(known[1])
    (condition,), (body,) = ([computations[name] for name in loop.called(key)] for key in ("condition", "body"))
    before, after = parent.instructions[loop.operands[0]], body.root
    if before.opcode != "tuple" or after.opcode != "tuple":
        return None
    terms = _less_than(computations, condition)
    if terms is None or terms[0].index < 0:
        return None
    counter, bound = terms

    def initial(index: int) -> int | None:
        return _integer(_original(parent, parent.operands(before)[index]))

    limit = _integer(bound)
    if bound.index >= 0 and _original(body, body.operands(after)[bound.index]).index == bound.index:
        limit = initial(bound.index)
    step = _step(body, body.operands(after)[counter.index], counter.index)
    if limit is None or step is None:
        return None
    return max(0, -(-(limit - (initial(counter.index) or 0)) // step))


def _less_than(
    computations: Mapping[str, Computation], condition: Computation
) -> tuple[Instruction, Instruction] | None:
    """Return what the root of a condition compares, if it asks for a < b, itself or in a fusion."""
    root, inside = _original(condition, condition.root), condition
    if root.opcode == "fusion":
        inside = computations[root.called("calls")[0]]
    test = _original(inside, inside.root)
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    terms = [_original(inside, term) for term in inside.operands(test)]
    if inside is not condition:
        outer = condition.operands(root)
        terms = [outer[int(term.literal)] if term.opcode == "parameter" else term for term in terms]
    left, right = (_original(condition, term) if term.name in condition.instructions else term for term in terms)
    return left, right


def _step(body: Computation, updated: Instruction, index: int) -> int | None:
    """Return what a loop adds to its counter, None if that is no positive constant."""
    updated = _original(body, updated)
    if updated.opcode == "fusion":
        return 1
    terms = [_original(body, term) for term in body.operands(updated)] if updated.opcode == "add" else []
    steps = [step for term in terms if (step := _integer(term)) is not None and step > 0]
    return steps[0] if len(steps) == 1 and index in [term.index for term in terms] else None


def _original(computation: Computation, instruction: Instruction) -> Instruction:
    """Return what an instruction copies, or itself."""
    while instruction.opcode in COPIES:
        instruction = computation.operands(instruction)[0]
    return instruction


def _integer(instruction: Instruction) -> int | None:
    is_integer = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal)
    return int(instruction.literal) if is_integer else None
