"""Functions of one device's part of arrays, wherever a model calls them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigjax.sharding import Layout


def shard_map(
    function: Callable, layout: Layout, in_specs: tuple, out_specs: Any, *, check_vma: bool = True
) -> Callable[..., Any]:
    """Return `jax.shard_map` of a function, in a stage of a pipeline, too, where it runs under a vmap over the stages.

    As each stage has devices of its own, there is nothing to batch there: the function sees what it always sees. JAX
    would give it an axis more, which kernels would have to know, and up to 0.10 gather that axis from all stages.
    `in_specs` are full trees of PartitionSpecs.
    """
    how = {"out_specs": out_specs, "check_vma": check_vma}
    if not layout.in_stage:
        return jax.shard_map(function, in_specs=in_specs, **how)

    def of_shape(*inputs: Any) -> Any:
        """Return zeros of the shapes of one stage's results: all that is asked of what is then replaced."""
        mesh = jax.sharding.get_abstract_mesh().update_axis_types({"stage": AxisType.Manual})
        with jax.sharding.use_abstract_mesh(mesh):
            where = jax.tree.map(partial(NamedSharding, mesh), in_specs)
            given = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), inputs, where)
            out = jax.eval_shape(jax.shard_map(function, in_specs=in_specs, **how), *given)
        return jax.tree.map(lambda x: jax.reshard(jnp.zeros(x.shape, x.dtype), x.sharding.spec), out)

    def own(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec("stage", *spec)

    def of_all_stages(size: int, batched: list, *inputs: Any) -> tuple[Any, Any]:
        del size

        def of_one(*inputs: Any) -> Any:
            parts = jax.tree.map(lambda x, of_stage: x[0] if of_stage else x, inputs, tuple(batched))
            return jax.tree.map(lambda x: x[None], function(*parts))

        specs = jax.tree.map(lambda spec, of_stage: own(spec) if of_stage else spec, in_specs, tuple(batched))
        run = jax.shard_map(of_one, in_specs=specs, out_specs=jax.tree.map(own, out_specs), check_vma=check_vma)
        out = run(*inputs)
        return out, jax.tree.map(lambda _: True, out)

    vmapped = jax.custom_batching.custom_vmap(of_shape)
    vmapped.def_vmap(of_all_stages)
    return vmapped
