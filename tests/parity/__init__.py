"""Parity with other libraries."""

from functools import partial

import jax

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` that compiles in half the time: these programs run once or a few times, on tiny arrays."""

fused_jit = partial(
    jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
)
"""`jax.jit` with the fused loops that tests leave out, without which layers grouped otherwise round otherwise."""
