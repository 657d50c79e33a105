"""Virtual devices that wait for each other in two places at once do not run out of threads."""

import jax
import numpy as np

from tests.on_meshes import one_step, shrunk


def test_an_encoder_decoder_steps_again_and_again_on_tensor_and_fsdp():
    # With a thread a device, a collective beside the loop over layers met one inside it within 50 steps.
    cfg, mesh = shrunk()["t5:v1_1-xl"], "fsdp 4, tensor 2, sequence"
    first = one_step(cfg, mesh, repeat=100)
    jax.tree.map(np.testing.assert_array_equal, first, one_step(cfg, mesh))
