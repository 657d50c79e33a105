"""A compiled program as XLA's HLO describes it: computations of instructions on arrays."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
"""Sizes of the types whose name does not hold them, in bits; `s4` and `bf16` do."""

COLLECTIVE_NAMES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-", "ragged-all-to-all")
FREE_CALLS = (
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "Sharding",
    "annotate_device_placement",
    "MoveToHost",
    "MoveToDevice",
    "LayoutConstraint",
    "X64",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
)
"""Custom calls that compute nothing, by the start of their target."""
COUNTED_CALLS = ("__cublas$", "__cudnn$fmha")


@dataclass(frozen=True)
class Array:
    """The type of one array; `on_chip` if the compiler keeps it in a TPU's scratch memory, off the HBM."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        return prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = BITS[self.dtype] if self.dtype in BITS else int(re.findall(r"\d+", self.dtype)[0])
        return (self.size * bits + 7) // 8


Shape = Array | tuple["Shape", ...]


def leaves(shape: Shape) -> list[Array]:
    """Return the arrays of a shape, tuples taken apart."""
    return [shape] if isinstance(shape, Array) else [array for part in shape for array in leaves(part)]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    `attributes` and, after them, `notes` (frontend attributes, metadata, the backend's configuration) are as printed;
    `literal` is what a constant or a parameter holds.
    """

    name: str
    opcode: str
    shape: Shape
    operands: tuple[str, ...]
    literal: str
    attributes: str
    notes: str
    op_name: str
    source: str

    def called(self, attribute: str) -> tuple[str, ...]:
        """Return the computations named by an attribute, `calls=%a` or `branch_computations={%a, %b}`."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return tuple(re.findall(r"[\w.\-]+", found[1])) if found else ()

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """Return the integers of an attribute such as `lhs_contracting_dims={0,2}`, none if it is absent."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(number) for number in found[1].split(",") if number) if found else ()

    @property
    def target(self) -> str:
        """The target of a custom call, "" for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def index(self) -> int:
        """Which part of its operand a get-tuple-element takes, -1 for other instructions."""
        found = re.search(r"\bindex=(\d+)", self.attributes) if self.opcode == "get-tuple-element" else None
        return int(found[1]) if found else -1

    @property
    def is_collective(self) -> bool:
        return self.opcode.startswith(COLLECTIVE_NAMES) and not self.opcode.endswith(("-done", "-update"))

    @property
    def is_free_call(self) -> bool:
        """Whether this is a custom call that only marks or allocates."""
        return self.opcode == "custom-call" and self.target.startswith(FREE_CALLS)


def result(instruction: Instruction) -> Shape:
    """Return the shape of what an instruction computes: that of an asynchronous start also holds its operands."""
    shape, opcode = instruction.shape, instruction.opcode
    if isinstance(shape, Array) or not opcode.endswith("-start") or opcode == "all-reduce-start":
        return shape
    return shape[0 if opcode == "copy-start" else 1]


@dataclass(frozen=True)
class Computation:
    """The instructions of a computation by name, in the order of the text."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def users(self, name: str) -> list[Instruction]:
        return [i for i in self if name in i.operands]

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands]

    def parameter(self, index: int) -> Instruction:
        return next(i for i in self if i.opcode == "parameter" and int(i.literal) == index)


@dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: by name; `entry` is the name of the one that runs.
      scheduled: whether instructions stand in the order in which they are issued.
      aliased_outputs: the positions in the result tuple that are written over a donated parameter.
      trip_counts: how often each while loop runs each time it is reached, by instruction; 1 where that is unknown.
      unknown_trip_counts: the while instructions whose trip count the text does not tell.
      uncounted_calls: custom calls whose operations nobody can count, as "name (target)": Pallas kernels and the like.
    """

    computations: Mapping[str, Computation]
    entry: str
    scheduled: bool
    aliased_outputs: frozenset[int]
    trip_counts: Mapping[str, int]
    unknown_trip_counts: tuple[str, ...]
    uncounted_calls: tuple[str, ...]

    def called(self, instruction: Instruction) -> list[Computation]:
        """Return the computations that an instruction runs once each: a fusion's, a call's or an async one's."""
        if instruction.opcode.endswith(("-done", "-update")):
            return []
        names = instruction.called("calls")
        if instruction.opcode in ("call", "call-start"):
            names += instruction.called("to_apply")
        return [self.computations[name] for name in names]

    def branches(self, conditional: Instruction) -> list[Computation]:
        keys = ("branch_computations", "true_computation", "false_computation")
        return [self.computations[name] for key in keys for name in conditional.called(key)]
