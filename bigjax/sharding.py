"""The mesh, the rules from logical axes to mesh axes, and the errors of a layout that does not fit.

Legend of logical axes: batch, seq (inside a block), residual_seq (between blocks), embed, mlp, heads, kv_heads,
head_dim, vocab, positions, buckets (of distances), classes, layers, vector (of model width, such as a norm's scale),
experts, gates (of a recurrent cell, or a router's outputs, one for each expert).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bigjax.config import BATCH_AXES, MESH_AXES, Config, MeshConfig, named
from bigjax.errors import UserError
from bigjax.params import ParamSpec, cast, names

PARAM_RULES: Mapping[str, tuple[str, ...]] = {
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "gates": (),
    "head_dim": (),
    "positions": (),
    "buckets": (),
    "classes": (),
    "features": (),
    "layers": (),
    "vector": (),
}
"""Where parameters are stored. Every logical axis of a parameter must stand here."""

ACTIVATION_RULES: Mapping[str, tuple[str, ...]] = {
    **PARAM_RULES,
    "embed": (),
    "batch": BATCH_AXES,
    "seq": (),
    "residual_seq": (),
}
"""Where activations live, and parameters while they are used: `embed` is gathered from `fsdp` first."""

REPLICATE_IF_INDIVISIBLE = ("vocab",)
"""Logical axes left whole when the mesh axis does not divide them (GPT-2's vocabulary is the odd number 50257)."""

REPLICATION_LIMIT_BYTES = 2**20
"""A parameter larger than this must not be whole on every device when `fsdp` is above 1."""

VECTOR_KINDS = ("norm", "bias")
"""Kinds whose parameters have no axis that the rules give to `fsdp`. Above the limit, which only the vectors of many
layers stacked can reach, `fsdp` splits their first axis that it divides; if there is none, that is noted."""


class ShardingError(UserError):
    """The mesh does not fit the devices, the model or the batch."""


class ReplicationError(ShardingError):
    """A large parameter would be whole on every device although the mesh could split it."""


class PaddingError(ShardingError):
    """Devices can hold even parts of a parameter only if one of its dimensions is padded."""


def mesh_shape(cfg: MeshConfig, num_devices: int) -> dict[str, int]:
    """Return the size of every mesh axis, with -1 replaced by all that is left of `num_devices`.

    Raises:
      ShardingError: if the sizes do not multiply to `num_devices`.
    """
    sizes = cfg.sizes
    fixed = prod(size for size in sizes.values() if size != -1)
    rest = next((axis for axis, size in sizes.items() if size == -1), None)
    given = [f"mesh.{axis}={size}" for axis, size in sizes.items() if size not in (1, -1)]
    at_hand = "device" if num_devices == 1 else "devices"
    if rest is not None:
        if num_devices % fixed:
            raise ShardingError(f"{_product(given, fixed)} does not divide the {num_devices} {at_hand} at hand")
        sizes[rest] = num_devices // fixed
    elif fixed != num_devices:
        raise ShardingError(
            f"{_product(given, fixed) if given else 'every axis of the mesh is 1'}, but there are {num_devices} "
            f"{at_hand}; set one axis to -1 to use the rest"
        )
    return sizes


def make_mesh(cfg: MeshConfig, devices: list[Any] | None = None) -> jax.sharding.Mesh:
    """Return a mesh with all seven axes, every one Explicit, slowest link first."""
    devices = list(devices if devices is not None else jax.devices())
    sizes = mesh_shape(cfg, len(devices))
    types = (AxisType.Explicit,) * len(MESH_AXES)
    num_slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if num_slices == 1 and devices[0].platform != "tpu":
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    from jax.experimental import mesh_utils

    if num_slices == 1:  # a mesh axis may be part of an axis of the torus, as 4 of 16 chips
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(grid, MESH_AXES, axis_types=types)
    if sizes["slice"] != num_slices:
        raise ShardingError(f"the devices form {num_slices} slices, but mesh.slice={sizes['slice']}")
    inner = tuple(1 if axis == "slice" else size for axis, size in sizes.items())
    outer = tuple(size if axis == "slice" else 1 for axis, size in sizes.items())
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices=devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=types)


def abstract_mesh(sizes: Mapping[str, int]) -> jax.sharding.AbstractMesh:
    """Return the mesh, with all seven axes, of devices that do not exist."""
    types = (AxisType.Explicit,) * len(MESH_AXES)
    return jax.sharding.AbstractMesh(tuple(sizes[axis] for axis in MESH_AXES), MESH_AXES, axis_types=types)


def axes_of_entry(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes of one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


@dataclass(frozen=True)
class Layout:
    """Where each logical axis lives on one mesh, resolved against one model's parameters.

    Attributes:
      sizes: devices along each mesh axis; empty when there is no mesh.
      params, activations: logical axis -> mesh axes of size above 1.
      notes: one sentence for every axis that a rule left whole.
      rest: the mesh axis that was given as -1 and takes all the remaining devices, if there is one.
    """

    sizes: Mapping[str, int]
    params: Mapping[str, tuple[str, ...]]
    activations: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    rest: str | None = None

    def param(self, spec: ParamSpec) -> P | None:
        """Return where a parameter is stored."""
        if not self.sizes:
            return None
        entries = [self.params[axis] for axis in spec.axes]
        if _is_large(spec) and spec.kind in VECTOR_KINDS and self.sizes["fsdp"] > 1:
            for i in range(int(spec.stacked), len(entries)):
                ways = prod(self.sizes[mesh_axis] for mesh_axis in (*entries[i], "fsdp"))
                if spec.shape[i] % ways == 0:
                    entries[i] = (*entries[i], "fsdp")
                    break
        return _partition(spec.axes, entries)

    def act(self, *axes: str) -> P | None:
        """Return where an activation with these logical axes lives; pass it as `out_sharding`."""
        return _partition(axes, [self.activations[axis] for axis in axes]) if self.sizes else None

    def place(self, x: jax.Array, *axes: str) -> jax.Array:
        """Move an activation to where these logical axes live."""
        return jax.reshard(x, self.act(*axes)) if self.sizes else x

    def gather(self, params: Any, specs: Any, dtype: Any) -> Any:
        """Return stored parameters as they are used: cast to `dtype`, then gathered from `fsdp`.

        The backward pass reduce-scatters the gradients to where the parameters are stored.
        """
        used = cast(specs, params, dtype)
        return jax.tree.map(lambda spec, w: self.place(w, *spec.axes[-w.ndim :]), specs, used)

    def over(self, *axes: str) -> tuple[str, ...]:
        """Return the mesh axes that split the given logical axes of an activation."""
        return tuple(mesh_axis for axis in axes for mesh_axis in self.activations.get(axis, ()))


UNSHARDED = Layout({}, {}, {})
"""The layout outside any mesh."""


def _partition(axes: tuple[str, ...], entries: list[tuple[str, ...]]) -> P:
    used = [mesh_axis for entry in entries for mesh_axis in entry]
    if len(set(used)) != len(used):
        raise ShardingError(f"logical axes {axes} would use a mesh axis twice: {used}")
    return P(*(entry[0] if len(entry) == 1 else (entry or None) for entry in entries))


def layout(cfg: MeshConfig, mesh: Any, specs: Any, supported: tuple[str, ...] = ()) -> Layout:
    """Resolve the rules on `mesh` (concrete or abstract) against a model's `specs`.

    `supported` names the reserved mesh axes (stage, expert, context) that the model can use without splitting a
    parameter over them; a sparse model can use `expert`.

    Raises:
      ShardingError: for a reserved axis the model does not support, a logical axis without a rule, or a name in
        `allow_replicated` that is unknown.
      PaddingError: for an axis that does not divide a dimension.
      ReplicationError: for a parameter above 1 MiB that `fsdp` leaves whole on every device.
    """
    sizes, rest = dict(mesh.shape), next((axis for axis, size in cfg.sizes.items() if size == -1), None)
    splitting = {m for spec in jax.tree.leaves(specs) for axis in spec.axes for m in PARAM_RULES.get(axis, ())}
    for axis in ("stage", "expert", "context"):
        if sizes[axis] > 1 and axis not in (*supported, *splitting):
            raise ShardingError(f"mesh.{axis}={sizes[axis]}: not yet for this model; set mesh.{axis}=1")
    for name in sorted({*cfg.allow_replicated} - {*PARAM_RULES, *names(specs)}):  # the first of several is no chance
        near = difflib.get_close_matches(name, [*PARAM_RULES, *names(specs)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ShardingError(
            f"mesh.allow_replicated names {name!r}, which is neither an axis nor a parameter of this model{hint}"
        )
    rules = {name: _present(axes, sizes) for name, axes in PARAM_RULES.items()}
    activations = {name: _present(axes, sizes) for name, axes in ACTIVATION_RULES.items()}
    if cfg.shard_sequence:
        activations["residual_seq"] = _present(("tensor",), sizes)
    notes = []
    for name, spec in names(specs).items():
        for axis, length in zip(spec.axes, spec.shape, strict=True):
            if axis not in rules:
                raise ShardingError(
                    f"{name}: there is no rule for axis '{axis}'; the axes with rules are {', '.join(rules)}"
                )
            if length % prod(sizes[mesh_axis] for mesh_axis in rules[axis]) == 0:
                continue
            clash = f"{name}: axis {axis} of size {length} is not divisible by {_describe(rules[axis], sizes, rest)}"
            if axis not in REPLICATE_IF_INDIVISIBLE and axis not in cfg.allow_replicated:
                raise PaddingError(
                    f"{clash}; change the mesh or the size, or leave it whole with mesh.allow_replicated=('{axis}',)"
                )
            notes.append(f"{clash}: {axis} stays whole on every device along it")
            rules[axis] = activations[axis] = ()
    resolved = Layout(sizes, rules, activations, rest=rest)
    notes += _check_replication(cfg, resolved, specs)
    return replace(resolved, notes=tuple(notes))


def on_the_mesh(specs: Any, cfg: MeshConfig | None = None) -> Layout:
    """Return the layout of a model on the mesh that `jax.set_mesh` has set; `UNSHARDED` where none is.

    Raises:
      ShardingError: as `layout`, or the mesh has other axes than `make_mesh` gives it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return UNSHARDED
    if mesh.axis_names != MESH_AXES:
        raise ShardingError(f"the mesh that is set has the axes {mesh.axis_names}: make it with bigjax.make_mesh")
    return layout(cfg or MeshConfig(), mesh, specs)


def fit(cfg: Config, mesh: Any, specs: Any) -> Layout:
    """Return the layout of a run on `mesh` (concrete or abstract) after checking that its batch and rows fit too.

    Raises:
      ShardingError: as in `layout`, `check_batch` and `check_sequence`.
    """
    resolved = layout(cfg.mesh, mesh, specs)
    check_batch(cfg.train.global_batch_size, cfg.train.microbatches, resolved)
    if named.task(cfg).unit == "tokens":
        check_sequence(cfg.data.seq_len, resolved)
    check_sequence(cfg.data.target_len, resolved, "data.target_len")
    return resolved


def _is_large(spec: ParamSpec) -> bool:
    return 4 * spec.size > REPLICATION_LIMIT_BYTES


def _present(axes: tuple[str, ...], sizes: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if sizes[axis] > 1)


def _describe(axes: tuple[str, ...], sizes: Mapping[str, int], rest: str | None) -> str:
    """Return the axes with their sizes, and their product if they are several; `rest` was -1, given or not."""
    given = [f"mesh.{axis}={sizes[axis]}" + " (-1: all the remaining devices)" * (axis == rest) for axis in axes]
    return _product(given, prod(sizes[axis] for axis in axes))


def _product(factors: list[str], value: int) -> str:
    return factors[0] if len(factors) == 1 else f"{' * '.join(factors)} = {value}"


def _check_replication(cfg: MeshConfig, resolved: Layout, specs: Any) -> list[str]:
    """Raise for a parameter that is too large to be whole on every device; return a note for every such vector."""
    notes = []
    for name, spec in names(specs).items():
        entries = resolved.param(spec)  # also finds a mesh axis used twice
        if any(entries or ()) or resolved.sizes["fsdp"] == 1 or not _is_large(spec) or name in cfg.allow_replicated:
            continue
        where = f"whole on every device although mesh.fsdp={resolved.sizes['fsdp']}"
        if spec.kind in VECTOR_KINDS:
            notes.append(f"{name} {spec.shape} stays {where}, which divides none of its axes")
        else:
            raise ReplicationError(
                f"{name} ({4 * spec.size / 2**20:.1f} MiB) would be {where}; "
                f"give one of its axes {spec.axes} a rule, or allow it with mesh.allow_replicated=('{name}',)"
            )
    return notes


def check_batch(global_batch_size: int, microbatches: int, resolved: Layout) -> None:
    """Raise ShardingError unless every device gets the same number of rows of every microbatch."""
    ways = prod(resolved.sizes[axis] for axis in BATCH_AXES)
    rows = global_batch_size // microbatches
    if rows % ways:
        over = _describe(_present(BATCH_AXES, resolved.sizes), resolved.sizes, resolved.rest)
        near = max(round(rows / ways), 1) * ways * microbatches
        raise ShardingError(
            f"train.global_batch_size={global_batch_size} in train.microbatches={microbatches} gives {rows} rows, "
            f"not divisible by {over}: set train.global_batch_size={near}"
        )


def check_sequence(seq_len: int, resolved: Layout, field: str = "data.seq_len") -> None:
    """Raise ShardingError unless the mesh axes that split the sequence divide it."""
    ways = prod(resolved.sizes[axis] for axis in resolved.over("residual_seq"))
    if seq_len % ways:
        raise ShardingError(f"{field}={seq_len} is not divisible by mesh.tensor={ways} (mesh.shard_sequence=True)")


def batch_sharding(mesh: jax.sharding.Mesh, ndim: int) -> NamedSharding:
    """Return the sharding of a batch array whose leading axis is the global batch."""
    rows = _present(BATCH_AXES, dict(mesh.shape))
    return NamedSharding(mesh, _partition(("batch", "seq")[:ndim], [rows, *[()] * (ndim - 1)]))


def local_rows(mesh: jax.sharding.Mesh, global_batch_size: int) -> slice:
    """Return the contiguous rows of every global batch that this process's devices hold.

    Raises:
      ShardingError: if the order of the devices leaves rows of other processes in between.
    """
    indices = batch_sharding(mesh, 1).addressable_devices_indices_map((global_batch_size,)).values()
    bounds = sorted({index[0].indices(global_batch_size)[:2] for index in indices if index})
    for (_, stop), (start, _) in pairwise(bounds):
        if start > stop:
            raise ShardingError(
                f"this process holds rows up to {stop} and from {start} of a batch, but not those in between; "
                "give the mesh axes of the batch other sizes, so that every process holds a block of rows"
            )
    return slice(bounds[0][0], bounds[-1][1])


def put_batch(
    arrays: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, global_batch_size: int
) -> dict[str, jax.Array]:
    """Place this process's rows of a batch on the mesh as global arrays `(global_batch_size, ...)`."""
    first = local_rows(mesh, global_batch_size).start

    def one(local: np.ndarray) -> jax.Array:
        def rows(index):
            start, stop, _ = index[0].indices(global_batch_size)
            return local[start - first : stop - first]

        shape = (global_batch_size, *local.shape[1:])
        return jax.make_array_from_callback(shape, batch_sharding(mesh, local.ndim), rows)

    return {name: one(local) for name, local in arrays.items()}
