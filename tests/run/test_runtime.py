"""Virtual devices that wait for each other do not run out of threads; a step on a CPU reuses the memory of the last."""

import platform
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.on_meshes import one_step, shrunk


def test_an_encoder_decoder_steps_again_and_again_on_tensor_and_fsdp():
    # With a thread a device, a collective beside the loop over layers met one inside it within 50 steps.
    cfg, mesh = shrunk()["t5:v1_1-xl"], "fsdp 4, tensor 2, sequence"
    first = one_step(cfg, mesh, repeat=100)
    jax.tree.map(np.testing.assert_array_equal, first, one_step(cfg, mesh))


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
