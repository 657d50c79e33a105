"""Meshes by name, and all those that some devices can form."""

from collections.abc import Iterable, Iterator
from itertools import cycle, product
from math import prod
from typing import Any

import jax

from bigjax.config import MeshConfig
from bigjax.errors import UserError

AXES = ("data", "fsdp", "expert", "context", "tensor")
"""The mesh axes that are combined, `expert` for sparse models only, `context` for families that can split a row."""

EXCHANGES = ("all_to_all", "gather", "ring")
"""How the parts of a row that `context` splits attend to each other."""

MAX_DEVICES = 8
"""A shrunk config has rows for so many devices."""


def mesh_name(mesh: MeshConfig) -> str:
    """Return e.g. `data=2,fsdp=2,tensor=2,shard_sequence`, which `parse` reads."""
    sizes = [f"{axis}={getattr(mesh, axis)}" for axis in AXES if getattr(mesh, axis) != 1] or ["data=1"]
    exchange = [] if mesh.context_exchange == "auto" else [mesh.context_exchange]
    return ",".join([*sizes, *exchange, *(["shard_sequence"] if mesh.shard_sequence else [])])


def parse(text: str) -> MeshConfig:
    """Return the mesh that text such as `fsdp=4,tensor=2,shard_sequence` means.

    Raises:
      UserError: it means none.
    """
    sizes: dict[str, Any] = {"data": 1}
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, _, size = part.partition("=")
        if part == "shard_sequence":
            sizes[part] = True
        elif part in EXCHANGES:
            sizes["context_exchange"] = part
        elif axis in AXES and size.isdecimal() and int(size):
            sizes[axis] = int(size)
        else:
            axes, others = ", ".join(AXES), ", ".join(EXCHANGES)
            raise UserError(
                f"--meshes: {part!r} is not AXIS=SIZE with an axis of {axes}, or shard_sequence, or one of {others}"
            )
    return MeshConfig(**sizes)


def factorisations(num_devices: int, sparse: bool = False, rows: bool = False) -> Iterator[MeshConfig]:
    """Yield every mesh of so many devices over `AXES`, with and without a split sequence where `tensor` is above 1.

    With `rows` those that split rows over `context`, too: alone with each of `EXCHANGES`, together with other axes with
    one after the other.
    """
    divisors = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    turns = cycle(EXCHANGES)
    others = (divisors, divisors if rows else [1], divisors if sparse else [1], divisors)
    for tensor, context, expert, fsdp in product(*others):
        data, left = divmod(num_devices, tensor * context * expert * fsdp)
        for split in (False, True) if tensor > 1 else (False,):
            if left:
                continue
            sizes: dict[str, Any] = {"data": data, "fsdp": fsdp, "expert": expert, "context": context, "tensor": tensor}
            alone = EXCHANGES if context == num_devices else ((next(turns),) if context > 1 else ("auto",))
            yield from (MeshConfig(**sizes, context_exchange=one, shard_sequence=split) for one in alone)


def places(mesh: MeshConfig) -> int:
    """Return the number of devices of a mesh."""
    return prod(getattr(mesh, axis) for axis in AXES)


def devices(mesh: MeshConfig) -> list[Any]:
    """Return as many devices as the mesh has places.

    Raises:
      UserError: there are fewer.
    """
    needed, found = places(mesh), jax.devices()
    if needed > len(found):
        raise UserError(f"mesh {mesh_name(mesh)} needs {needed} devices, but there are {len(found)}")
    return found[:needed]


def all_meshes(num_devices: int, sparse: bool = False, rows: bool = False) -> Iterable[MeshConfig]:
    """Return all meshes of the largest power of two of devices that the rows of a shrunk config allow.

    `sparse`: whether the model has experts to split. `rows`: whether it can split rows.

    Raises:
      UserError: there is only one device.
    """
    if num_devices < 2:
        raise UserError("there is one device, and one mesh: JAX_PLATFORMS=cpu gives 8 virtual devices")
    return factorisations(min(2 ** (num_devices.bit_length() - 1), MAX_DEVICES), sparse, rows)
