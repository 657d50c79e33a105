"""Parameters to tensors and back: what the table of an architecture means for the arrays.

A bigjax matrix has its input axes, those it contracts, first, each head on an axis of its own, and one array holds all
layers. A Hugging Face tensor is flat on both sides, mostly stored (out, in), one for each layer.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from bigjax.interop.hf.architecture import Architecture, Fused, HuggingFaceError
from bigjax.params import ParamSpec, names


@dataclass(frozen=True)
class Piece:
    """A slice of a parameter and the part of a tensor that it is.

    Attributes:
      param: name of the parameter. index: along its leading axes. shape: of the slice.
      flat: shape of the part, before it is transposed. transposed: whether it is. part, parts: as in `Fused`.
    """

    param: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    flat: tuple[int, ...]
    transposed: bool
    part: int
    parts: int

    def from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        """Return the slice of the parameter out of the whole tensor."""
        whole = tensor.T if self.transposed else tensor
        size = self.flat[-1]
        return whole[..., self.part * size : (self.part + 1) * size].reshape(self.shape)


Tensors = dict[str, list[Piece]]
"""The pieces of every tensor, in their order."""


def tensors_of(architecture: Architecture, specs: Any) -> Tensors:
    """Return every tensor that holds the parameters declared by `specs`.

    Raises:
      HuggingFaceError: a parameter is not in the table.
    """
    tensors: Tensors = {}
    table = architecture.table(names(specs))
    for param, spec in names(specs).items():
        entry = table.get(param)
        if entry is None:
            raise HuggingFaceError(f"{architecture.class_name} has no tensor for the parameter {param}")
        fused = entry if isinstance(entry, Fused) else Fused(entry, 0, 1)
        apart = re.findall(r"\{(\w+)\}", fused.template)
        assert spec.axes[: len(apart)] == tuple(apart), f"{fused.template} does not fit the axes {spec.axes}"
        shape = spec.shape[len(apart) :]
        flat = _flat(spec, len(apart))
        transposed = architecture.transposed and spec.kind == "matrix"
        for index in product(*map(range, spec.shape[: len(apart)])):
            name = fused.template.format(**dict(zip(apart, index, strict=True)))
            piece = Piece(param, index, shape, flat, transposed, fused.part, fused.parts)
            tensors.setdefault(name, []).append(piece)
    for pieces in tensors.values():
        pieces.sort(key=lambda piece: piece.part)
        assert len(pieces) == pieces[0].parts
    return tensors


def _flat(spec: ParamSpec, apart: int) -> tuple[int, ...]:
    """Return the shape with input axes and output axes made one each; a vector has output axes only."""
    sizes = list(zip(spec.axes[apart:], spec.shape[apart:], strict=True))
    if spec.kind == "matrix":
        inner = [size for axis, size in sizes if axis in spec.contracts]
        assert tuple(axis for axis, _ in sizes[: len(inner)]) == spec.contracts, "input axes come first"
        return prod(inner), prod(size for _, size in sizes[len(inner) :])
    return tuple(size for _, size in sizes) if spec.kind in ("embedding", "head") else (prod(spec.shape[apart:]),)


def tensor_shape(pieces: list[Piece]) -> tuple[int, ...]:
    """Return the shape of a tensor as it is stored."""
    flat = (*pieces[0].flat[:-1], pieces[0].flat[-1] * len(pieces))
    return flat[::-1] if pieces[0].transposed else flat


def to_tensor(pieces: list[Piece], params: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Return a tensor as it is stored, made from parameters by name."""
    parts = [params[piece.param][piece.index].astype(dtype, copy=False).reshape(piece.flat) for piece in pieces]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return np.ascontiguousarray(whole.T if pieces[0].transposed else whole)


def to_params(
    tensors: Tensors, specs: Any, arrays: Iterator[tuple[str, np.ndarray]], dtypes: Mapping[str, np.dtype]
) -> dict[str, np.ndarray]:
    """Return the parameters by name, filled from the named tensors that `arrays` yields."""
    params = {param: np.empty(spec.shape, dtypes[param]) for param, spec in names(specs).items()}
    for name, tensor in arrays:
        for piece in tensors[name]:
            params[piece.param][piece.index] = piece.from_tensor(tensor)
    return params
