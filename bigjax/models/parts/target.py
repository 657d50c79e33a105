"""What a program that is being traced will run on."""

import jax


def device_kind() -> str:
    """Return what JAX calls the devices of the mesh at hand, such as `TPU v5 lite`; "" under a mesh without devices.

    A mesh of devices that are only described, for a compiler, says it too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.devices()[0].device_kind
    device = mesh.abstract_device
    return "" if device is None else device.device_kind
