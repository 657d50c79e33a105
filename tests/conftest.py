"""Eight virtual CPU devices for every test, set before JAX starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax.sharding import Mesh

from bigjax import sharding
from bigjax.config import MeshConfig

jax.config.update("jax_num_cpu_devices", 8)


def mesh_of(num_devices: int | None = None, **axes) -> tuple[MeshConfig, Mesh]:
    """Return a mesh config and its mesh over the first `num_devices` devices (default: all)."""
    cfg = MeshConfig(**axes)
    return cfg, sharding.make_mesh(cfg, jax.devices()[:num_devices])


@pytest.fixture
def one_device():
    """A mesh of one device, set for the test."""
    _, mesh = mesh_of(1)
    with jax.set_mesh(mesh):
        yield mesh
