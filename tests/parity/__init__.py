"""Parity with other libraries."""

from functools import partial

import jax

quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` that compiles in half the time: these programs run once or a few times, on tiny arrays."""
