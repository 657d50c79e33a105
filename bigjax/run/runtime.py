"""Process-wide settings of JAX that every command wants; call before the first use of a device."""

import contextlib
import ctypes
import importlib.util
import os
import pkgutil
import platform
import sys
import warnings
from pathlib import Path

from bigjax.data.errors import DataError
from bigjax.data.tokens.cache import cache_folder

DEVICES = Path("/dev")


def configure_jax() -> None:
    """Keep compiled programs on disk and, on a CPU, freed memory in the process; keep unused TPU and GPU plugins quiet.

    The compilation cache lies in the user's cache folder unless `JAX_COMPILATION_CACHE_DIR` says otherwise.
    """
    if "JAX_PLATFORMS" not in os.environ and (platforms := _platforms()):
        os.environ["JAX_PLATFORMS"] = platforms
    only_cpus = os.environ.get("JAX_PLATFORMS") == "cpu" or not (_has_tpu() or _has_gpu())
    if only_cpus:
        _keep_freed_memory()
    import jax

    # JAX reads these when it is imported, which a config of a family of the user's own may have done before.
    with contextlib.suppress(RuntimeError):  # once there are devices it is too late, as for two commands in one process
        for name, kind in (("JAX_PLATFORMS", str), ("JAX_NUM_CPU_DEVICES", int)):
            if name in os.environ:
                jax.config.update(name.lower(), kind(os.environ[name]))
    if only_cpus:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    give_devices_threads(jax.config.jax_num_cpu_devices)  # pyright: ignore[reportAttributeAccessIssue]
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            jax.config.update("jax_compilation_cache_dir", str(cache_folder(None) / "compiled"))
        except DataError:  # without it the run only starts more slowly
            print("note: the cache folder cannot be written to, so compiled programs are not kept", file=sys.stderr)
    # JAX says at length what is wrong with the cache, to a user who did not ask for one.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    # Small programs are most of a short run's start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def dispatches_ahead() -> bool:
    """Return whether a step goes on after its call has returned; on CPUs it has ended then (`configure_jax`).

    Metrics of a step that goes on are best read once the next one is dispatched. Those of one that has ended are read
    before: later, it would be timed together with the next.
    """
    import jax

    return jax.default_backend() != "cpu"


def give_devices_threads(num_cpu_devices: int) -> None:
    """Give virtual CPU devices threads enough for all that may block at a time; call before the first use of a device.

    XLA runs all CPU devices of a process on one pool of as many threads as there are devices (or cores, if more), and a
    collective blocks its thread until the others of its group have come. A device may wait in two at once, one of a
    loop and one that does not depend on the loop, such as the gathering of a parameter that is used after it. Then some
    devices hold two threads and those they wait for have none, until XLA ends the process: the train step of a T5 on
    fsdp 4, tensor 2 did so within 50 steps on 2 cores, and with 4 threads a device in none of 600. XLA takes the size
    of the pool from the environment variable NPROC.
    """
    if num_cpu_devices > 1:
        os.environ.setdefault("NPROC", str(4 * num_cpu_devices))


def _keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees for the next one, where the C library is glibc.

    XLA allocates its buffers anew in every step on a CPU. By default glibc returns large blocks to the system at once,
    and the next step waits for as many pages to be mapped and zeroed again: on 2 cores that was 0.1 (`--workload=w1`)
    to 0.2 (`w2`) of a step in `benchmarks.train_step`. The process stays as large as it once was.

    glibc keeps so much only in the heap of the main thread, from which a step allocates if it is dispatched
    synchronously. One heap for all threads would keep it, too, but threads that compile then wait for each other: that
    was 1.2 (JAX 0.10.2) to 1.7 s (0.12) of the first step of w1.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # <malloc.h>: no block of its own for a large request; nothing trimmed, however much it is.
    for option, value in ((-4, 0), (-1, -1)):
        mallopt(option, value)


def _platforms() -> str | None:
    """Return what JAX may look for, where a plugin is installed for a device that this machine does not have.

    On a machine that only plans, the search for one prints alarming lines, or a traceback, at every start. A plugin for
    anything else may find what we know nothing of: then JAX looks for all.
    """
    idle = (_installed("libtpu") and not _has_tpu()) or (_has_cuda_plugin() and not _has_gpu())
    if not idle or _other_plugins():
        return None
    return ",".join([*["tpu"] * _has_tpu(), *["cuda"] * _has_gpu(), "cpu"])


def _other_plugins() -> bool:
    found = importlib.util.find_spec("jax_plugins")
    folders = found.submodule_search_locations if found else None
    return any(not module.name.startswith("xla_cuda") for module in pkgutil.iter_modules(folders or []))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _has_tpu() -> bool:
    return any(DEVICES.glob("accel*")) or any(DEVICES.glob("vfio/[0-9]*"))


def _has_gpu() -> bool:
    """Return whether JAX could use a GPU: the devices of NVIDIA's driver, also under Windows, and JAX's plugin."""
    found = any(any(DEVICES.glob(name)) for name in ("nvidia[0-9]*", "nvidiactl", "dxg"))
    return found and _has_cuda_plugin()


def _has_cuda_plugin() -> bool:
    return _installed("jax_cuda12_plugin") or _installed("jax_cuda13_plugin")
