"""Meshes on TPU tori: an axis may be part of an axis of the torus, and lies on neighbouring chips."""

from dataclasses import dataclass

import numpy as np
import pytest

from bigjax import sharding
from bigjax.config import MeshConfig


@dataclass(frozen=True)
class Device:
    """What JAX says of a TPU."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    device_kind: str = "TPU v6 lite"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0


def torus(x: int, y: int, z: int = 1, kind: str = "TPU v6 lite", slice_index: int = 0) -> list[Device]:
    found = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
    first = slice_index * len(found)
    return [Device(first + n, coords, slice_index, kind) for n, coords in enumerate(found)]


@pytest.mark.parametrize(
    ("devices", "axes"),
    [
        (torus(16, 16), {"fsdp": 64, "tensor": 4}),
        (torus(16, 16), {"fsdp": 256}),
        (torus(4, 4, 8, "TPU v5"), {"fsdp": 64, "tensor": 2}),
        (torus(4, 4, 8, "TPU v4"), {"fsdp": 16, "expert": 4, "tensor": 2}),
        (torus(8, 8) + torus(8, 8, slice_index=1), {"slice": 2, "fsdp": 32, "tensor": 2}),
    ],
    ids=["v6e x tensor", "v6e", "v5p x tensor", "v4 x expert x tensor", "two slices of v6e"],
)
def test_every_chip_is_used_once_and_groups_are_neighbours(devices, axes):
    mesh = sharding.make_mesh(MeshConfig(data=1, **axes), devices)
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == axes
    assert sorted(device.id for device in mesh.devices.flat) == list(range(len(devices)))
    slices = {device.slice_index for device in mesh.devices[0].flat}
    assert len(slices) == 1  # `slice` is the first axis
    for group in mesh.devices.reshape(-1, axes.get("tensor", 1)):
        span = np.ptp([device.coords for device in group], axis=0) + 1
        assert np.prod(span) == len(group), "a block of the torus"
