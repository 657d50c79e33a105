"""Meshes by name, and all those that some devices can form."""

from collections.abc import Iterable, Iterator
from itertools import cycle, product
from math import prod
from typing import Any

import jax

from bigjax.config import MeshConfig
from bigjax.errors import UserError

AXES = ("stage", "data", "fsdp", "expert", "tensor")
"""The mesh axes that a mesh by name may have."""

PIPELINE = ("pipeline_microbatches", "pipeline_repeats")
"""What a mesh with stages may have besides."""

MAX_DEVICES = 8
"""A shrunk config has rows for so many devices."""


def mesh_name(mesh: MeshConfig) -> str:
    """Return e.g. `data=2,fsdp=2,tensor=2,shard_sequence`, which `parse` reads."""
    sizes = [f"{axis}={getattr(mesh, axis)}" for axis in AXES if getattr(mesh, axis) != 1] or ["data=1"]
    schedule = [
        f"{name}={getattr(mesh, name)}" for name in PIPELINE if getattr(mesh, name) != getattr(MeshConfig, name)
    ]
    return ",".join([*sizes, *schedule, *(["shard_sequence"] if mesh.shard_sequence else [])])


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
        elif axis in (*AXES, *PIPELINE) and size.isdecimal() and int(size):
            sizes[axis] = int(size)
        else:
            others = ", ".join((*AXES, *PIPELINE))
            raise UserError(f"--meshes: {part!r} is not AXIS=SIZE with an axis of {others}, or shard_sequence")
    return MeshConfig(**sizes)


def factorisations(num_devices: int, sparse: bool = False) -> Iterator[MeshConfig]:
    """Yield every mesh of so many devices over data, fsdp, tensor and, if `sparse`, expert.

    With and without a split sequence where `tensor` is above 1.
    """
    divisors = [size for size in range(1, num_devices + 1) if num_devices % size == 0]
    for tensor, expert, fsdp in product(divisors, divisors if sparse else [1], divisors):
        data, left = divmod(num_devices, tensor * expert * fsdp)
        for split in (False, True) if tensor > 1 else (False,):
            if not left:
                yield MeshConfig(data=data, fsdp=fsdp, expert=expert, tensor=tensor, shard_sequence=split)


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


def all_meshes(num_devices: int, sparse: bool = False, stages: bool = False) -> Iterable[MeshConfig]:
    """Return all meshes of the largest power of two of devices that the rows of a shrunk config allow.

    `sparse`: whether the model has experts to split. `stages`: whether its layers can be split into stages.

    Raises:
      UserError: there is only one device.
    """
    if num_devices < 2:
        raise UserError("there is one device, and one mesh: JAX_PLATFORMS=cpu gives 8 virtual devices")
    count = min(2 ** (num_devices.bit_length() - 1), MAX_DEVICES)
    return [*factorisations(count, sparse), *(pipelines(count, sparse) if stages else ())]
