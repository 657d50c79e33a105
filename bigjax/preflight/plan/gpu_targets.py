"""What XLA must know of a GPU to compile for it where there is none: a `GpuTargetConfig` text proto."""

from bigjax.run.chips import PlanError, chip, chip_data

COMMON = """\
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536"""
"""Limits that compute capabilities 8.0, 9.0 and 10.0 share (CUDA C++ Programming Guide, technical specifications)."""

FIELDS = (
    "core_count",
    "fpus_per_core",
    "shared_memory_per_core",
    "shared_memory_per_block_optin",
    "memory_bandwidth",
    "l2_cache_size",
    "clock_rate_ghz",
    "device_memory_size",
)


def gpu_target_config(chip_name: str) -> str:
    """Return the text proto for `target_config` of `jax.experimental.topologies.get_topology_desc`.

    The figures are those of OpenXLA's own descriptions (`chips.json`, `gpu_target.source`); bytes, bytes/s and GHz.

    Raises:
      PlanError: `chip_name` is unknown or not a GPU.
    """
    known = chip(chip_name)
    if known.platform != "gpu":
        raise PlanError(f"{chip_name} is a TPU and has no GPU target: use its libtpu name")
    target = chip_data()["chips"][chip_name]["gpu_target"]
    figures = "\n".join(f"  {name}: {target[name]}" for name in FIELDS)
    major, extension = target["compute_capability_major"], target["feature_extension"]
    capability = f"major: {major} minor: 0 feature_extension: {extension}"
    return (
        f"gpu_device_info {{\n{COMMON}\n{figures}\n  cuda_compute_capability {{ {capability} }}\n}}\n"
        f'platform_name: "CUDA"\ndevice_description_str: "{target["device_description_str"]}"\n'
    )
