"""What one device does in a compiled program: operations, memory traffic, the largest arrays, the collectives."""

import re
from collections.abc import Callable
from functools import cache
from math import prod

import numpy as np

from bigjax.preflight.plan.hlo.buffers import NO_BUFFER, Buffer, largest_buffers
from bigjax.preflight.plan.hlo.collectives import collectives
from bigjax.preflight.plan.hlo.module import Array, Computation, Instruction, Module, Shape, leaves, result
from bigjax.preflight.plan.hlo.text import parse

__all__ = ["Buffer", "Module", "arguments", "bytes_accessed", "collectives", "flops", "largest_buffers", "parse"]

NO_TRAFFIC = {"parameter", "constant", *NO_BUFFER}
"""Instructions that move no array themselves."""


def flops(module: Module) -> int:
    """Return the operations of the matrix products and convolutions of one device in one execution.

    A multiplication and an addition are two. Bodies of loops count as often as they run, of the branches of a
    conditional the largest one; `module.uncounted_calls` are missing.
    """
    return _total(module, _product_flops, into_fusions=True)


def bytes_accessed(module: Module) -> int:
    """Return the bytes that one device reads from and writes to its main memory in one execution, an estimate.

    Every instruction reads its operands and writes its results; a fusion does so once. An instruction that slices an
    array touches the slice only, and one that updates a slice in place the update only. Arrays in the scratch memory
    of a TPU are free, and so is padding.
    """
    return _total(module, lambda computation, i: _traffic(module, computation, i), into_fusions=False)


def arguments(module: Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that go in, one device's part of each, by the names that the traced code has."""
    entry = (i for i in module.computations[module.entry] if i.opcode == "parameter" and i.op_name)
    return {i.op_name: i.shape.dims for i in entry if isinstance(i.shape, Array)}


def _total(module: Module, cost: Callable[[Computation, Instruction], int], into_fusions: bool) -> int:
    """Return the cost of all instructions of an execution."""

    @cache
    def total(name: str) -> int:
        computation, spent = module.computations[name], 0
        for i in computation:
            spent += cost(computation, i)
            if i.opcode == "while":
                once = sum(total(called) for key in ("condition", "body") for called in i.called(key))
                spent += module.trip_counts[i.name] * once
            elif i.opcode == "conditional":
                spent += max(total(branch.name) for branch in module.branches(i))
            elif into_fusions or i.opcode != "fusion":
                spent += sum(total(called.name) for called in module.called(i))
        return spent

    return total(module.entry)


def _product_flops(computation: Computation, i: Instruction) -> int:
    if i.opcode == "dot":
        lhs = _array(computation, i, 0)
        return 2 * leaves(i.shape)[0].size * prod(lhs.dims[axis] for axis in i.numbers("lhs_contracting_dims"))
    if i.opcode == "convolution":
        return _convolution_flops(i, _array(computation, i, 0), _array(computation, i, 1))
    if i.target.startswith("__cublas$"):
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.notes)
        axes = [int(axis.strip('" ')) for axis in found[1].split(",") if axis] if found else []
        lhs = _array(computation, i, 0)
        return 2 * leaves(i.shape)[0].size * prod(lhs.dims[axis] for axis in axes)
    if i.target.startswith("__cudnn$fmha"):
        # Scores and weighted values are a product each; backward has the scores again and two gradients of each.
        found = re.search(r'"intermediate_tensor_shape":\{.*?"dimensions":\[([^\]]*)\]', i.notes)
        scores = prod(int(size.strip('" ')) for size in found[1].split(",")) if found else 0
        return (10 if "Backward" in i.target else 4) * scores * _array(computation, i, 0).dims[-1]
    return 0


def _array(computation: Computation, i: Instruction, operand: int) -> Array:
    return leaves(computation.operands(i)[operand].shape)[0]


def _convolution_flops(i: Instruction, lhs: Array, kernel: Array) -> int:
    """Count the products of a convolution that meet an element of the input, not padding nor a hole between elements.

    On TPU a matrix product is a convolution too, whose window may walk over batch dimensions that way.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels, i.name
    out, window = leaves(i.shape)[0], _window(i.attributes)
    pairs = 1
    for label in sorted(set(labels[3]) - set("bf")):
        axis = int(label)
        pairs *= _window_pairs(
            lhs.dims[labels[1].index(label)],
            kernel.dims[labels[2].index(label)],
            out.dims[labels[3].index(label)],
            **{key: values[axis] for key, values in window.items()},
        )
    rows = out.dims[labels[3].index("b")] * out.dims[labels[3].index("f")]
    return 2 * rows * pairs * kernel.dims[labels[2].index("i")]


def _window(attributes: str) -> dict[str, list[int]]:
    """Return stride, low padding and dilations of a convolution's window, by axis."""
    text = found[1] if (found := re.search(r"window=\{([^}]*)\}", attributes)) else ""
    fields = dict(part.split("=") for part in text.split())
    rank = len(fields["size"].split("x")) if fields else 0
    names = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    split = {name: fields.get(name, "x".join([default] * rank)).split("x") for name, default in names.items()}
    return {name: [int(value.split("_")[0]) for value in values] for name, values in split.items() if rank}


@cache
def _window_pairs(
    size: int, kernel: int, out: int, stride: int = 1, pad: int = 0, lhs_dilate: int = 1, rhs_dilate: int = 1
) -> int:
    """Return how many pairs of an output position and a kernel position meet one of `size` input elements."""
    first = np.arange(out) * stride - pad
    return sum(
        int(np.sum((at >= 0) & (at <= (size - 1) * lhs_dilate) & (at % lhs_dilate == 0)))
        for at in (first + k * rhs_dilate for k in range(kernel))
    )


def _traffic(module: Module, computation: Computation, i: Instruction) -> int:
    if i.opcode in NO_TRAFFIC or i.opcode.endswith(("-done", "-update")) or i.is_free_call:
        return 0
    if i.opcode == "fusion":
        (fused,) = module.called(i)
        if any(inner.target == "AsyncCollectiveDone" for inner in fused):
            return 0
        operands = computation.operands(i)
        reads = sum(
            _read(module, fused, fused.parameter(n)) for n, operand in enumerate(operands) if _in_memory(operand.shape)
        )
        return reads + sum(_written(module, fused, fused.root, i.shape))
    if module.called(i):  # the called computation counts its own
        return 0
    reads = sum(_read_by(module, computation, i, n) for n in range(len(i.operands)))
    return reads + sum(_written(module, computation, i, result(i)))


def _in_memory(shape: Shape) -> int:
    return sum(array.bytes for array in leaves(shape) if not array.on_chip)


def _read(module: Module, fused: Computation, value: Instruction) -> int:
    """Return the bytes of a value that its users inside a fusion read."""
    whole = sum(array.bytes for array in leaves(value.shape))
    touched = 0
    for user in fused.users(value.name):
        if user.opcode == "bitcast":
            touched += _read(module, fused, user)
        else:
            positions = [n for n, name in enumerate(user.operands) if name == value.name]
            touched += sum(_touched(module, fused, user, position) for position in positions)
    return min(whole, touched)


def _read_by(module: Module, computation: Computation, i: Instruction, position: int) -> int:
    """Return the bytes that an instruction reads of one operand in main memory."""
    on_chip = not _in_memory(computation.operands(i)[position].shape)
    return 0 if on_chip else _touched(module, computation, i, position)


def _touched(module: Module, computation: Computation, i: Instruction, position: int) -> int:
    """Return the bytes that an instruction reads of the operand at `position`, wherever that is stored."""
    if position == 0 and i.opcode in ("dynamic-slice", "slice", "gather"):
        return sum(array.bytes for array in leaves(i.shape))
    if position == 0 and i.opcode == "dynamic-update-slice":
        return 0
    if position == 0 and i.opcode == "scatter":  # adds to the elements that it updates
        return sum(array.bytes for array in leaves(computation.operands(i)[-1].shape))
    if i.opcode == "fusion":
        (fused,) = module.called(i)
        return _read(module, fused, fused.parameter(position))
    return sum(array.bytes for array in leaves(computation.operands(i)[position].shape))


def _written(module: Module, computation: Computation, i: Instruction, shape: Shape) -> list[int]:
    """Return the bytes written for each array of `shape`, which is that of `i` or of the fusion whose root `i` is."""
    if i.opcode == "tuple" and isinstance(shape, tuple):
        parts = zip(computation.operands(i), shape, strict=True)
        return [size for operand, part in parts for size in _written(module, computation, operand, part)]
    if not _in_memory(shape):
        return [0] * len(leaves(shape))
    if i.opcode == "bitcast":
        return _written(module, computation, computation.operands(i)[0], shape)
    if i.opcode in ("dynamic-update-slice", "scatter"):
        return [_in_place(computation, i)]
    if i.opcode == "fusion":
        (fused,) = module.called(i)
        return _written(module, fused, fused.root, shape)
    return [0 if array.on_chip else array.bytes for array in leaves(shape)]


def _in_place(computation: Computation, i: Instruction) -> int:
    """Return the bytes of the update that an instruction writes into its first operand."""
    update = computation.operands(i)[1 if i.opcode == "dynamic-update-slice" else -1]
    return sum(array.bytes for array in leaves(update.shape))
