"""The collectives of a compiled program: over which mesh axes, how often, how many bytes, and what they overlap."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from bigjax.preflight.plan.hlo.module import Computation, Instruction, Module, leaves, result
from bigjax.preflight.plan.traffic import KINDS, Collective, Kind, sent_bytes

WORK = ("fusion", "dot", "convolution", "custom-call", "while", "call", "conditional")
"""Instructions during which a collective that was started makes progress unnoticed."""

UNKNOWN_AXES = ("?",)

BETWEEN_SLICES: dict[str, Kind] = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
"""What a TPU program asks its host to exchange with other slices, in a `send` and a `recv`."""


@dataclass(frozen=True)
class Sent:
    """A sum of collectives: how many, and the bytes a device sends in all and in the shade of other work."""

    count: int = 0
    bytes: float = 0
    overlapped: float = 0

    def plus(self, other: "Sent", times: int = 1) -> "Sent":
        return Sent(
            self.count + times * other.count,
            self.bytes + times * other.bytes,
            self.overlapped + times * other.overlapped,
        )


Traffic = dict[tuple[Kind, tuple[str, ...]], Sent]


def collectives(module: Module, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Return what the devices of a mesh send each other in one execution, one entry for each kind and set of axes.

    `mesh_shape` gives the axis sizes in mesh order; the devices of a group are positions in that order. Of the branches
    of a conditional the one that sends most counts. Groups of one device send nothing and are left out.
    """

    @cache
    def total(name: str) -> Traffic:
        computation, traffic = module.computations[name], Traffic()
        for key, sent in _own(module, computation, mesh_shape):
            traffic[key] = traffic.get(key, Sent()).plus(sent)
        for i in computation:
            if i.opcode == "while":
                for key in ("condition", "body"):
                    for called in i.called(key):
                        _add(traffic, total(called), module.trip_counts[i.name])
            elif i.opcode == "conditional":
                branches = [total(branch.name) for branch in module.branches(i)]
                _add(traffic, max(branches, key=lambda branch: sum(sent.bytes for sent in branch.values())))
            elif i.opcode in ("call", "call-start"):
                for called in module.called(i):
                    _add(traffic, total(called.name))
        return traffic

    found = [
        Collective(kind, axes, sent.count, round(sent.bytes), round(sent.overlapped))
        for (kind, axes), sent in total(module.entry).items()
    ]
    return sorted(found, key=lambda c: (KINDS.index(c.kind), c.mesh_axes))


def _add(traffic: Traffic, other: Traffic, times: int = 1) -> None:
    for key, sent in other.items():
        traffic[key] = traffic.get(key, Sent()).plus(sent, times)


def _own(
    module: Module, computation: Computation, mesh_shape: Mapping[str, int]
) -> Iterator[tuple[tuple[Kind, tuple[str, ...]], Sent]]:
    """Yield the collectives that a computation issues itself, not those of its loops and calls."""
    sequence, continued = list(computation), set()
    for position, i in enumerate(sequence):
        if i.opcode == "send" and (transfer := re.search(r'_xla_megascale_transfer_type="(\w+)"', i.notes)):
            hidden = module.scheduled and _overlaps(module, sequence[position + 1 :], i, "")
            yield _between_slices(computation, i, transfer[1], mesh_shape, hidden)
        for inner, holder in _issued(module, computation, i):
            channel = _channel(inner)
            start = i.opcode.endswith("-start")
            if holder is not computation:
                marks = [user.target for user in holder.users(inner.name)]
                start = start or "AsyncCollectiveStart" in marks
                if not start and (channel in continued or "AsyncCollectiveDone" in marks):
                    continue  # a TPU fusion that carries on, or ends, what another one started
                if start:
                    continued.add(channel)
            kind = _kind(inner, holder)
            axes, size = _groups(inner, mesh_shape)
            if size < 2:
                continue
            sent = sent_bytes(kind, _whole_bytes(kind, inner, holder), size)
            hidden = start and module.scheduled and _overlaps(module, sequence[position + 1 :], i, channel)
            yield (kind, axes), Sent(1, sent, sent if hidden else 0)


def _between_slices(
    computation: Computation, send: Instruction, transfer: str, mesh_shape: Mapping[str, int], hidden: bool
) -> tuple[tuple[Kind, tuple[str, ...]], Sent]:
    """Return what a device exchanges with the same device of other slices, which the first axis of the mesh counts."""
    kind = BETWEEN_SLICES.get(transfer, "collective-permute")
    found = re.search(r'_xla_megascale_target="\{([\d,]+)\}', send.notes)
    size = len(found[1].split(",")) if found else 1
    first = next((name for name, n in mesh_shape.items() if n > 1), "?")
    axes = (first,) if mesh_shape.get(first) == size else UNKNOWN_AXES
    whole = sum(array.bytes for array in leaves(computation.operands(send)[0].shape))
    sent = sent_bytes(kind, whole * (size if kind == "all-gather" else 1), size)
    return (kind, axes), Sent(1, sent, sent if hidden else 0)


def _issued(module: Module, computation: Computation, i: Instruction) -> Iterator[tuple[Instruction, Computation]]:
    """Yield the collectives that an instruction is or wraps, each with the computation that holds it."""
    if i.is_collective:
        yield i, computation
    elif i.opcode == "fusion" or i.opcode == "async-start":
        for called in module.called(i):
            for inner in called:
                yield from _issued(module, called, inner)


def _kind(i: Instruction, holder: Computation) -> Kind:
    opcode = i.opcode.removesuffix("-start")
    if opcode == "all-reduce" and "all-reduce-scatter" in holder.name:
        return "reduce-scatter"  # a TPU fusion of an all-reduce with the slice that each device keeps
    if opcode == "ragged-all-to-all":
        return "all-to-all"
    if opcode == "collective-broadcast":
        return "collective-permute"
    return next(kind for kind in KINDS if kind == opcode)  # pyright: ignore[reportReturnType]


def _whole_bytes(kind: Kind, i: Instruction, holder: Computation) -> int:
    if kind == "all-gather":
        return sum(array.bytes for array in leaves(result(i)))
    operands = holder.operands(i)
    if i.opcode.startswith("ragged"):  # the others are the output and the offsets
        operands = operands[:1]
    return sum(array.bytes for operand in operands for array in leaves(operand.shape))


def _channel(i: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", i.attributes)
    return found[1] if found else i.name


def _overlaps(module: Module, later: list[Instruction], start: Instruction, channel: str) -> bool:
    """Return whether work is scheduled between a start and its end."""
    if '"is_sync":true' in start.notes:
        return False
    handles, worked = {start.name}, False
    for i in later:
        uses = not handles.isdisjoint(i.operands)
        if uses and i.opcode.endswith("-update"):
            handles.add(i.name)
        if (uses and i.opcode.endswith("-done")) or (i.opcode == "fusion" and _ends(module, i, channel)):
            return worked
        worked = worked or _is_work(module, i)
    return False


def _ends(module: Module, fusion: Instruction, channel: str) -> bool:
    (fused,) = module.called(fusion)
    return any(
        i.is_collective and _channel(i) == channel and "AsyncCollectiveDone" in [u.target for u in fused.users(i.name)]
        for i in fused
    )


def _is_work(module: Module, i: Instruction) -> bool:
    if i.opcode not in WORK or i.is_free_call:
        return False
    if i.opcode != "fusion":
        return True
    (fused,) = module.called(i)
    # A fusion with a collective is that collective, unless the compiler put part of one under other work.
    return fused.name.startswith("async_collective_fusion") or not any(inner.is_collective for inner in fused)


def _groups(i: Instruction, mesh_shape: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Return the mesh axes along which the devices of a group differ, and the size of a group."""
    key = "source_target_pairs" if i.opcode.startswith("collective-permute") else "replica_groups"
    found = re.search(rf"{key}=(.*?)(?=, [a-z_]+=(?!\()|$)", i.attributes)
    return _axes(found[1].strip() if found else "{}", tuple(mesh_shape.items()), key == "source_target_pairs")


@cache
def _axes(text: str, mesh: tuple[tuple[str, int], ...], pairs: bool) -> tuple[tuple[str, ...], int]:
    groups = device_groups(text, prod(size for _, size in mesh))
    if pairs:
        groups = [pair for pair in groups if pair[0] != pair[1]]
    size = max((len(group) for group in groups), default=0)
    names, sizes = [name for name, _ in mesh], [size for _, size in mesh]
    if size < 2:
        return (), size
    if any(len(group) != size for group in groups) or max(map(max, groups)) >= prod(sizes):
        return UNKNOWN_AXES, size
    members = np.array(groups)
    coordinates = np.unravel_index(members, sizes)
    differ = [bool((c != c[:, :1]).any()) for c in coordinates]
    axes = tuple(name for name, differs in zip(names, differ, strict=True) if differs)
    if pairs:
        return axes, size
    # Groups that differ only along these axes and are as large as these axes allow hold every such neighbour.
    full = prod(n for n, differs in zip(sizes, differ, strict=True) if differs) == size
    # A program for several slices names the devices of one, the last axes of the mesh.
    parts = [prod(sizes[axis:]) for axis in range(len(sizes))]
    complete = members.size in parts and np.array_equal(np.sort(members, axis=None), np.arange(members.size))
    return (axes if full and complete else UNKNOWN_AXES), size


def device_groups(text: str, num_devices: int) -> list[list[int]]:
    """Return the groups of devices that a collective's `replica_groups` or `source_target_pairs` describe.

    Forms: `{{0,1},{2,3}}`; `{}` for one group of all; `[2,4]<=[4,2]T(1,0)`, an iota reshaped, transposed and cut into
    rows; `mesh['a'=4,'b'=2], device_ids=([4,2]T(1,0)) {'a', 'b':(1)2}`, the axes of a mesh, or the digits of an axis,
    that vary inside a group. Raises ValueError for any other.
    """
    if re.fullmatch(r"\{\s*(\{[\d,\s]*\}[,\s]*)*\}", text):
        groups = [[int(n) for n in group.split(",") if n] for group in re.findall(r"\{([\d,\s]*)\}", text)]
        return [group for group in groups if group] or [list(range(num_devices))]
    if rows := re.fullmatch(r"(\[[\d,]+\])<=(.*)", text):
        return _iota(rows[2]).reshape(_numbers(rows[1])).tolist()
    mesh = re.fullmatch(r"@?mesh\[(.*?)\](?:,? ?device_ids=\((.*)\))? ?\{(.*)\}", text)
    if mesh is None:
        raise ValueError(f"cannot read the device groups {text[:80]!r}")
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", mesh[1])}
    devices = _iota(mesh[2]) if mesh[2] else np.arange(prod(sizes.values()))
    coordinates = dict(zip(sizes, np.unravel_index(np.arange(devices.size), list(sizes.values())), strict=True))
    for name, before, digits in re.findall(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?", mesh[3]):
        base = int(digits or sizes[name])
        stride = sizes[name] // (int(before or 1) * base)
        c = coordinates[name]
        coordinates[name] = c - c // stride % base * stride
    fixed = np.ravel_multi_index(tuple(coordinates.values()), tuple(sizes.values()))
    return [devices[fixed == group].tolist() for group in np.unique(fixed)]


def _iota(text: str) -> np.ndarray:
    """Return the devices of `[4,2]T(1,0)`: 0, 1, ... laid out in a shape, axes swapped, read in order."""
    if not text.startswith("["):
        return np.array(_numbers(text))
    shape, _, order = text.partition("T")
    dims = _numbers(shape)
    devices = np.arange(prod(dims)).reshape(dims)
    return (devices.transpose(_numbers(order)) if order else devices).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
