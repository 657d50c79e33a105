"""Meshes by name, and all those that some devices can form."""

from collections.abc import Iterable, Iterator
from itertools import cycle, product
from math import prod
from typing import Any

import jax

from bigjax.config import MeshConfig
from bigjax.errors import UserError

AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")
"""The mesh axes that a mesh by name may have."""

EXCHANGES = ("all_to_all", "gather", "ring")
"""How the parts of a row that `context` splits attend to each other."""

PIPELINE = ("pipeline_microbatches", "pipeline_repeats")
"""What a mesh with stages may have besides."""

MAX_DEVICES = 8
"""A shrunk config has rows for so many devices."""


def mesh_name(mesh: MeshConfig) -> str:
    """Return e.g. `data=2,fsdp=2,tensor=2,shard_sequence`, which `parse` reads."""
    sizes = [f"{axis}={getattr(mesh, axis)}" for axis in AXES if getattr(mesh, axis) != 1] or ["data=1"]
    exchange = [] if mesh.context_exchange == "auto" else [mesh.context_exchange]
    schedule = [
        f"{name}={getattr(mesh, name)}" for name in PIPELINE if getattr(mesh, name) != getattr(MeshConfig, name)
    ]
    return ",".join([*sizes, *exchange, *schedule, *(["shard_sequence"] if mesh.splits_sequence else [])])


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
        elif axis in (*AXES, *PIPELINE) and size.isdecimal() and int(size):
            sizes[axis] = int(size)
        else:
            axes, others = ", ".join((*AXES, *PIPELINE)), ", ".join(EXCHANGES)
            raise UserError(
                f"--meshes: {part!r} is not AXIS=SIZE with an axis of {axes}, or shard_sequence, or one of {others}"
            )
    return MeshConfig(**sizes)


def factorisations(num_devices: int, sparse: bool = False, rows: bool = False) -> Iterator[MeshConfig]:
    """Yield every mesh of so many devices over data, fsdp, tensor and, if `sparse`, expert.

    With and without a split sequence where `tensor` is above 1. With `rows` those that split rows over `context`, too:
    alone with each of `EXCHANGES`, together with other axes with one after the other.
    """
    divisors = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    turns = cycle(EXCHANGES)
    others = (divisors, divisors if rows else [1], divisors if sparse else [1], divisors)
    for tensor, context, expert, fsdp in product(*others):
        data, left = divmod(num_devices, tensor * context * expert * fsdp)
        for split in (False, True) if tensor > 1 else (False,):
            if left:
                continue
            sizes: dict[str, Any] = {"data": data, "fsdp": fsdp, "expert": expert}
            sizes |= {"context": context, "tensor": tensor}
            alone = EXCHANGES if context == num_devices else ((next(turns),) if context > 1 else ("auto",))
            yield from (MeshConfig(**sizes, context_exchange=one, shard_sequence=split) for one in alone)


def pipelines(num_devices: int, sparse: bool = False) -> Iterator[MeshConfig]:
    """Yield meshes of so many devices with every number of stages, and each other axis; every second one is circular.

    `sparse`: whether the model has experts to split.
    """
    repeats = cycle((1, 2))
    for stage in (size for size in range(2, num_devices + 1) if num_devices % size == 0):
        left = num_devices // stage
        for axis in ("fsdp", "tensor", *(["expert"] if sparse else [])) if left > 1 else ("fsdp",):
            size = left if axis == "fsdp" else 2
            how = {axis: size, "pipeline_repeats": next(repeats), "shard_sequence": axis == "tensor"}
            yield MeshConfig(stage=stage, data=left // size, **how)


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


def all_meshes(
    num_devices: int, sparse: bool = False, rows: bool = False, stages: bool = False
) -> Iterable[MeshConfig]:
    """Return all meshes of the largest power of two of devices that the rows of a shrunk config allow.

    `sparse`: whether the model has experts to split. `rows`: whether it can split rows. `stages`: whether its layers
    can be split into stages.

    Raises:
      UserError: there is only one device.
    """
    if num_devices < 2:
        raise UserError("there is one device, and one mesh: JAX_PLATFORMS=cpu gives 8 virtual devices")
    count = min(2 ** (num_devices.bit_length() - 1), MAX_DEVICES)
    return [*factorisations(count, sparse, rows), *(pipelines(count, sparse) if stages else ())]
