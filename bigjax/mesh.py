"""The mesh of a run: its axes, its sizes, its devices."""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
from jax.sharding import AxisType

from bigjax.config import MESH_AXES, MeshConfig
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
    if num_slices == 1:
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    stages, left = divmod(num_slices, sizes["slice"])  # of which each has slices of its own
    if left or sizes["stage"] % stages:
        raise ShardingError(
            f"the devices form {num_slices} slices, but mesh.slice={sizes['slice']}: set mesh.slice={num_slices}, or "
            f"mesh.stage={num_slices} and mesh.slice=1 for a stage in each"
        )
    from jax.experimental import mesh_utils

    across = {"slice": sizes["slice"], "stage": stages}
    outer = tuple(across.get(axis, 1) for axis in sizes)
    inner = tuple(size // across.get(axis, 1) for axis, size in sizes.items())
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices=devices)
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=types)


def abstract_mesh(sizes: Mapping[str, int]) -> jax.sharding.AbstractMesh:
    """Return the mesh, with all seven axes, of devices that do not exist."""
    types = (AxisType.Explicit,) * len(MESH_AXES)
    return jax.sharding.AbstractMesh(tuple(sizes[axis] for axis in MESH_AXES), MESH_AXES, axis_types=types)


def product_of(factors: list[str], value: int) -> str:
    """Return factors and their product in words."""
    return factors[0] if len(factors) == 1 else f"{' * '.join(factors)} = {value}"
