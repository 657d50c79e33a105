"""Process-wide settings of JAX that every command wants; call before the first use of a device."""

import importlib.util
import os
from pathlib import Path

from bigjax.data.cache import cache_folder


def configure_jax() -> None:
    """Keep compiled programs on disk, and keep an unused TPU library quiet.

    The compilation cache lies in the user's cache folder unless `JAX_COMPILATION_CACHE_DIR` says otherwise.
    """
    if "JAX_PLATFORMS" not in os.environ and _installed("libtpu") and not _has_tpu():
        # Without a TPU, the library's search for one prints alarming lines at every start.
        os.environ["JAX_PLATFORMS"] = "cuda,cpu" if _has_cuda_plugin() else "cpu"
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(None) / "compiled"))
    # Small programs are most of a short run's start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/[0-9]*"))


def _has_cuda_plugin() -> bool:
    return _installed("jax_cuda12_plugin") or _installed("jax_cuda13_plugin")
