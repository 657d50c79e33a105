"""The mesh of a run: its axes, its sizes, its devices, and the batches on it."""

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bigjax.config import BATCH_AXES, MESH_AXES, MeshConfig
from bigjax.errors import UserError


class ShardingError(UserError):
    """The mesh does not fit the devices, the model or the batch."""


def mesh_shape(cfg: MeshConfig, num_devices: int) -> dict[str, int]:
    """Return the size of every mesh axis, with -1 replaced by all that is left of `num_devices`.

    Raises:
      ShardingError: if the sizes do not multiply to `num_devices`.
    """
    sizes = cfg.sizes
    fixed = prod(size for size in sizes.values() if size != -1)
    rest = next((axis for axis, size in sizes.items() if size == -1), None)
    given = [f"mesh.{axis}={size}" for axis, size in sizes.items() if size not in (1, -1)]
    at_hand = "device" if num_devices == 1 else "devices"
    if rest is not None:
        if num_devices % fixed:
            raise ShardingError(f"{product_of(given, fixed)} does not divide the {num_devices} {at_hand} at hand")
        sizes[rest] = num_devices // fixed
    elif fixed != num_devices:
        raise ShardingError(
            f"{product_of(given, fixed) if given else 'every axis of the mesh is 1'}, but there are {num_devices} "
            f"{at_hand}; set one axis to -1 to use the rest"
        )
    return sizes


def make_mesh(cfg: MeshConfig, devices: list[Any] | None = None) -> jax.sharding.Mesh:
    """Return a mesh with all seven axes, every one Explicit, slowest link first."""
    devices = list(devices if devices is not None else jax.devices())
    sizes = mesh_shape(cfg, len(devices))
    types = (AxisType.Explicit,) * len(MESH_AXES)
    num_slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if num_slices == 1 and devices[0].platform != "tpu":
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    from jax.experimental import mesh_utils

    if num_slices == 1:  # a mesh axis may be part of an axis of the torus, as 4 of 16 chips
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(grid, MESH_AXES, axis_types=types)
    stages, left = divmod(num_slices, sizes["slice"])  # of which each has slices of its own
    if left or sizes["stage"] % stages:
        raise ShardingError(
            f"the devices form {num_slices} slices, but mesh.slice={sizes['slice']}: set mesh.slice={num_slices}, or "
            f"mesh.stage={num_slices} and mesh.slice=1 for a stage in each"
        )
    across = {"slice": sizes["slice"], "stage": stages}
    outer = tuple(across.get(axis, 1) for axis in sizes)
    inner = tuple(size // across.get(axis, 1) for axis, size in sizes.items())
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices=devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=types)


def abstract_mesh(sizes: Mapping[str, int]) -> jax.sharding.AbstractMesh:
    """Return the mesh, with all seven axes, of devices that do not exist."""
    types = (AxisType.Explicit,) * len(MESH_AXES)
    return jax.sharding.AbstractMesh(tuple(sizes[axis] for axis in MESH_AXES), MESH_AXES, axis_types=types)


def product_of(factors: list[str], value: int) -> str:
    """Return factors and their product in words."""
    return factors[0] if len(factors) == 1 else f"{' * '.join(factors)} = {value}"


def batch_sharding(mesh: jax.sharding.Mesh, ndim: int) -> NamedSharding:
    """Return the sharding of a batch array whose leading axis is the global batch."""
    rows = tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)
    entry = rows[0] if len(rows) == 1 else (rows or None)
    return NamedSharding(mesh, P(entry, *[None] * (ndim - 1)))


def local_rows(mesh: jax.sharding.Mesh, global_batch_size: int) -> slice:
    """Return the contiguous rows of every global batch that this process's devices hold.

    Raises:
      ShardingError: if the order of the devices leaves rows of other processes in between.
    """
    indices = batch_sharding(mesh, 1).addressable_devices_indices_map((global_batch_size,)).values()
    bounds = sorted({index[0].indices(global_batch_size)[:2] for index in indices if index})
    for (_, stop), (start, _) in pairwise(bounds):
        if start > stop:
            raise ShardingError(
                f"this process holds rows up to {stop} and from {start} of a batch, but not those in between; "
                "give the mesh axes of the batch other sizes, so that every process holds a block of rows"
            )
    return slice(bounds[0][0], bounds[-1][1])


def put_batch(
    arrays: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, global_batch_size: int
) -> dict[str, jax.Array]:
    """Place this process's rows of a batch on the mesh as global arrays `(global_batch_size, ...)`."""
    first = local_rows(mesh, global_batch_size).start

    def one(local: np.ndarray) -> jax.Array:
        def rows(index):
            start, stop, _ = index[0].indices(global_batch_size)
            return local[start - first : stop - first]

        shape = (global_batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh, local.ndim), rows)

    return {name: one(local) for name, local in arrays.items()}
