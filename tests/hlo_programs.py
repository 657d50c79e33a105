"""Small programs, compiled for the virtual devices and read back."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

from bigjax.preflight.plan.hlo import costs as hlo

F32 = 4
"""Bytes of a float."""


def mesh_of(**axes: int):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def read(function, *arguments, mesh=None, specs=None, out=None) -> hlo.Module:
    """Compile for float32 arguments of the given shapes, laid out by `specs` on a mesh, and read the program."""
    placed = [None if mesh is None else NamedSharding(mesh, spec) for spec in specs or [None] * len(arguments)]
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=p) for s, p in zip(arguments, placed, strict=True)]
    outputs = None if out is None else jax.tree.map(lambda spec: NamedSharding(mesh, spec), out)
    return hlo.parse(jax.jit(function, out_shardings=outputs).lower(*shapes).compile().as_text())
