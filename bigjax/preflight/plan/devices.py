"""Devices that need not be here: descriptions of TPU slices and GPU machines that the real compilers accept."""

import os
import re
from importlib.util import find_spec
from typing import Any

from bigjax.errors import UserError
from bigjax.preflight.plan.gpu_targets import gpu_target_config
from bigjax.run import chips
from bigjax.run.chips import Chip, PlanError, Topology

LOWERING = {"tpu": "tpu", "gpu": "cuda", "cpu": "cpu"}
"""Platform of a topology -> the name that JAX lowers for."""

ENVIRONMENT = {
    "tpu": {
        "JAX_PLATFORMS": "cpu",
        # Without them the TPU library asks a metadata server, prints alarming lines, and two processes lock each other
        # out. Any accelerator type will do: the topology is given by name.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    },
    "gpu": {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"},
    "cpu": {"JAX_PLATFORMS": "cpu"},
}
"""Environment variables of a process that compiles, by platform."""

MEGACORE = ("v4", "v5p")
"""Chips whose two TensorCores work as one device."""


def parse(text: str, num_slices: int = 1) -> Topology:
    """Return the topology that `text` names: `chips.parse_topology`, or `cpu:N`, N virtual devices of this machine.

    Raises:
      PlanError: there is no such topology.
    """
    if not text.startswith("cpu"):
        return chips.parse_topology(text, num_slices)
    if not re.fullmatch(r"cpu:[1-9]\d*", text) or num_slices != 1:
        raise PlanError(f"{text!r} is not a topology: write cpu:N for N virtual devices of this machine")
    return cpu(int(text.removeprefix("cpu:")))


def cpu(num_devices: int) -> Topology:
    """Return the virtual devices of this machine, which share its memory and have no figures for a roofline."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_devices
    none: dict[str, Any] = dict.fromkeys(
        ("hbm_bytes_per_s", "ici_bytes_per_s", "ici_links", "ici_axes", "dcn_bytes_per_s"), 0
    )
    own: Any = {"platform": "cpu", "sources": {}, "note": "", "peak_flops": {}}
    most = dict.fromkeys(("chips_per_host", "max_chips", "max_side", "fast_domain_chips"), num_devices)
    kinds = {"name": "cpu", "vendor_name": "this machine", "device_kind": "cpu", "devices_per_chip": 1}
    return Topology(Chip(**kinds, **own, **most, **none, hbm_bytes=memory), (num_devices,))


def at_hand(found: list[Any]) -> Topology:
    """Return the topology of devices that are here.

    Raises:
      PlanError: their kind is not in the table of chips.
    """
    platform, kind = found[0].platform, found[0].device_kind
    if platform == "cpu":
        return cpu(len(found))
    chip = chips.chip_of_device_kind(kind)
    if chip is None:
        raise PlanError(f"there are no figures for {kind}: no plan can be made on it")
    if platform != "tpu":
        per_host = min(len(found), chip.chips_per_host)
        return Topology(chip, (len(found) // per_host, per_host))
    slices = len({getattr(device, "slice_index", 0) or 0 for device in found})
    return Topology(chip, (len(found) // chip.devices_per_chip // slices,), slices)


def name(topology: Topology) -> str:
    """Return what `parse` reads."""
    return f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"


def check_installed(platform: str) -> None:
    """Raise UserError with the command to run if the compiler of `platform` is not installed."""
    hint = ", or use --analytic, which needs none"
    if platform == "tpu" and find_spec("libtpu") is None:
        raise UserError(f"the TPU compiler is not installed: pip install 'bigjax[plan-tpu]'{hint}")
    if platform == "gpu" and not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(f"the GPU compiler is not installed: pip install 'bigjax[plan-gpu]'{hint}")


def of(topology: Topology) -> list[Any]:
    """Return the devices of `topology`, in a process with its `ENVIRONMENT`.

    Raises:
      UserError: the compiler does not know such a topology.
    """
    import jax
    from jax.experimental import topologies

    if topology.platform == "cpu":
        return jax.devices()[: topology.num_devices]
    if topology.platform == "gpu":
        options: dict[str, Any] = {
            "topology_name": "",
            "target_config": gpu_target_config(topology.chip.name),
            "topology": topology.xla_gpu_name,
        }
        return list(topologies.get_topology_desc(platform="cuda", **options).devices)
    options = libtpu_options(topology)
    try:
        return list(topologies.get_topology_desc(platform="tpu", **options).devices)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"the TPU compiler has no topology {topology.libtpu_name}: {first}") from error


def libtpu_options(topology: Topology) -> dict[str, Any]:
    """Return what `get_topology_desc` is asked for, so that a slice is described as it is wired.

    Left to itself libtpu takes every axis as open, and each half of a megacore chip of a v4 as a device.
    """
    closed = (*topology.closed_axes, False, False)[:3]  # it wants three even where the torus has two
    options: dict[str, Any] = {"topology_name": topology.libtpu_name, "wrap": closed}
    if topology.chip.name in MEGACORE:
        options["chip_config_name"] = "megacore"
    if topology.num_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    return options
