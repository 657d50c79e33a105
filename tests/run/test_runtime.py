"""Virtual devices that wait for each other do not run out of threads; a step on a CPU reuses the memory of the last."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax.run import runtime
from tests.commands import ROOT
from tests.on_meshes import one_step, shrunk


@pytest.mark.exhaustive
def test_an_encoder_decoder_steps_again_and_again_on_tensor_and_fsdp():
    # With a thread a device, a collective beside the loop over layers met one inside it within 50 steps.
    cfg, mesh = shrunk()["t5:v1_1-xl"], "fsdp 4, tensor 2, sequence"
    first = one_step(cfg, mesh, repeat=100)
    jax.tree.map(np.testing.assert_array_equal, first, one_step(cfg, mesh))


@pytest.mark.parametrize(
    ("installed", "devices", "others", "platforms"),
    [
        ({"jax_cuda12_plugin"}, set(), False, "cpu"),
        ({"jax_cuda13_plugin"}, set(), False, "cpu"),
        ({"libtpu"}, set(), False, "cpu"),
        ({"libtpu", "jax_cuda12_plugin"}, set(), False, "cpu"),
        ({"libtpu", "jax_cuda12_plugin"}, {"nvidia0", "nvidiactl"}, False, "cuda,cpu"),
        ({"libtpu", "jax_cuda12_plugin"}, {"accel0"}, False, "tpu,cpu"),
        ({"libtpu"}, {"accel0"}, False, None),
        ({"jax_cuda12_plugin"}, {"nvidia0"}, False, None),
        ({"jax_cuda12_plugin"}, {"dxg"}, False, None),
        ({"jax_cuda12_plugin"}, set(), True, None),
        (set(), set(), False, None),
    ],
)
def test_jax_looks_for_no_device_that_only_a_plugin_speaks_of(
    installed, devices, others, platforms, tmp_path, monkeypatch
):
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(runtime, "DEVICES", tmp_path)
    monkeypatch.setattr(runtime, "_installed", lambda module: module in installed)
    monkeypatch.setattr(runtime, "_other_plugins", lambda: others)
    assert runtime._platforms() == platforms


def test_a_plugin_without_a_gpu_prints_no_traceback(tmp_path):
    """A stand-in that fails as NVIDIA's does when nothing tells it that only CPUs are wanted."""
    plugin = tmp_path / "jax_plugins" / "xla_cuda12"
    plugin.mkdir(parents=True)
    (tmp_path / "jax_cuda12_plugin").mkdir()
    (plugin / "__init__.py").write_text(
        "import jax\n\ndef initialize():\n    if jax.config.jax_platforms != 'cpu':\n"
        "        raise RuntimeError('Unable to load CUDA. Is it installed?')\n"
    )
    program = "from bigjax.run import runtime\nruntime.configure_jax()\nimport jax\nprint(jax.devices()[0].platform)"
    if next(Path("/dev").glob("nvidia*"), None):
        program = f"from bigjax.run import runtime\nruntime.DEVICES = runtime.Path({str(tmp_path)!r})\n{program}"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment | path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "cpu\n", "")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only of glibc is it known how to keep memory")
def test_what_a_step_frees_is_not_mapped_anew():
    program = """
import resource
from bigjax.run import runtime
runtime.configure_jax()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.sin(x), x.sum()))  # a buffer of 64 MiB
x = jnp.ones((4096, 4096))
for _ in range(5):
    jax.block_until_ready(step(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    jax.block_until_ready(step(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # Each of the 30 steps would fault in the pages of its buffer; now and then the heap still grows by one.
    assert int(ran.stdout) < 10 * 4096 * 4096 * 4 / resource.getpagesize()
