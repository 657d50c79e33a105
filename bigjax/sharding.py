"""The rules from logical axes to mesh axes, and the errors of a layout that does not fit.

Legend of logical axes: batch, seq (inside a block), residual_seq (between blocks), embed, mlp, heads, kv_heads,
head_dim, vocab, positions, buckets (of distances), classes, layers, vector (of model width, such as a norm's scale),
experts, gates (of a recurrent cell, or a router's outputs, one for each expert).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from bigjax.config import BATCH_AXES, MESH_AXES, Config, MeshConfig, exchange, named, pipeline
from bigjax.mesh import ShardingError as ShardingError  # handed on with those of a layout
from bigjax.mesh import abstract_mesh as abstract_mesh
from bigjax.mesh import batch_sharding as batch_sharding
from bigjax.mesh import local_rows as local_rows
from bigjax.mesh import make_mesh as make_mesh
from bigjax.mesh import mesh_shape as mesh_shape
from bigjax.mesh import product_of
from bigjax.mesh import put_batch as put_batch
from bigjax.params import ParamSpec, cast, names

PARAM_RULES: Mapping[str, tuple[str, ...]] = {
    "embed": ("fsdp", "context"),
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
    "layers": ("stage",),
    "vector": (),
}
"""Where parameters are stored. Every logical axis of a parameter must stand here."""

ACTIVATION_RULES: Mapping[str, tuple[str, ...]] = {
    **PARAM_RULES,
    "embed": (),
    "layers": (),
    "batch": BATCH_AXES,
    "seq": ("context",),
    "residual_seq": ("context",),
}
"""Where activations live, and parameters while they are used: `embed` is gathered from `fsdp` and `context` first.

Between the embedding and the head each stage has its own layers, and of the batch what `Layout.of_stage` says."""

REPLICATE_IF_INDIVISIBLE = ("vocab",)
"""Logical axes left whole when the mesh axis does not divide them (GPT-2's vocabulary is the odd number 50257)."""

REPLICATION_LIMIT_BYTES = 2**20
"""A parameter larger than this must not be whole on every device when `fsdp` is above 1."""

VECTOR_KINDS = ("norm", "bias")
"""Kinds whose parameters have no axis that the rules give to `fsdp`. Above the limit, which only the vectors of many
layers stacked can reach, `fsdp` splits their first axis that it divides; if there is none, that is noted."""


class ReplicationError(ShardingError):
    """A large parameter would be whole on every device although the mesh could split it."""


class PaddingError(ShardingError):
    """Devices can hold even parts of a parameter only if one of its dimensions is padded."""


def axes_of_entry(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes of one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def axes_of(spec: P) -> frozenset[str]:
    """Return the mesh axes that split some dimension, by a PartitionSpec."""
    return frozenset(axis for entry in spec.partitions for axis in axes_of_entry(entry))


@dataclass(frozen=True)
class Layout:
    """Where each logical axis lives on one mesh, resolved against one model's parameters.

    Attributes:
      sizes: devices along each mesh axis; empty when there is no mesh.
      params, activations: logical axis -> mesh axes of size above 1.
      notes: one sentence for every axis that a rule left whole.
      rest: the mesh axis that was given as -1 and takes all the remaining devices, if there is one.
      exchange: `mesh.context_exchange`, which the model resolves where it is `auto`.
      pipeline_microbatches, pipeline_repeats: those of the mesh's config.
      in_stage: whether it is that of one stage of several.
    """

    sizes: Mapping[str, int]
    params: Mapping[str, tuple[str, ...]]
    activations: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    rest: str | None = None
    exchange: str = "auto"
    pipeline_microbatches: int = 0
    pipeline_repeats: int = 1
    in_stage: bool = False

    @property
    def stages(self) -> int:
        """Return into how many stages the mesh splits the layers."""
        return self.sizes.get("stage", 1)

    def of_stage(self) -> "Layout":
        """Return the layout of one stage among its own devices, where it has the rows of all stages."""
        own = {name: tuple(axis for axis in axes if axis != "stage") for name, axes in self.activations.items()}
        return replace(self, sizes={**self.sizes, "stage": 1}, activations=own, in_stage=True)

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

        The backward pass reduce-scatters the gradients to where the parameters are stored. Of parameters that are
        `reduced` over some mesh axes (`train.reduction`) it leaves the sum over those to whoever marked them.
        """
        used = cast(specs, params, dtype)
        return jax.tree.map(lambda spec, w: self.whole(w, *spec.axes[-w.ndim :]), specs, used)

    def whole(self, w: jax.Array, *axes: str) -> jax.Array:
        """Move a stored parameter to where these logical axes live, as `gather` does."""
        stored = jax.typeof(w).sharding.spec
        if not stored.reduced:
            return self.place(w, *axes)
        # A product takes a cotangent that is unreduced over all axes which split the rows, or over none.
        used = self.act(*axes)
        assert used is not None
        return jax.reshard(w, used.update(reduced=stored.reduced | (axes_of(stored) - axes_of(used))))

    def over(self, *axes: str) -> tuple[str, ...]:
        """Return the mesh axes that split the given logical axes of an activation."""
        return tuple(mesh_axis for axis in axes for mesh_axis in self.activations.get(axis, ()))

    def ways(self, *axes: str) -> int:
        """Return into how many parts the mesh splits the given logical axes of an activation."""
        return prod(self.sizes[mesh_axis] for mesh_axis in self.over(*axes))

    def whole_rows(self) -> "Layout":
        """Return the same without `context`: for rows of any length, on which the devices along it then work alike."""
        kept = {axis: tuple(m for m in over if m != "context") for axis, over in self.activations.items()}
        return replace(self, activations=kept)


UNSHARDED = Layout({}, {}, {})
"""The layout outside any mesh."""


def _partition(axes: tuple[str, ...], entries: list[tuple[str, ...]]) -> P:
    used = [mesh_axis for entry in entries for mesh_axis in entry]
    if len(set(used)) != len(used):
        raise ShardingError(f"logical axes {axes} would use a mesh axis twice: {used}")
    return P(*(entry[0] if len(entry) == 1 else (entry or None) for entry in entries))


def layout(cfg: MeshConfig, mesh: Any, specs: Any, supported: tuple[str, ...] = ()) -> Layout:
    """Resolve the rules on `mesh` (concrete or abstract) against a model's `specs`.

    `supported` names the reserved mesh axes (stage, expert, context) that the family of the model can use; a sparse
    model can use `expert`.

    Raises:
      ShardingError: for a reserved axis the model does not support, a logical axis without a rule, or a name in
        `allow_replicated` that is unknown.
      PaddingError: for an axis that does not divide a dimension.
      ReplicationError: for a parameter above 1 MiB that `fsdp` leaves whole on every device.
    """
    sizes, rest = dict(mesh.shape), next((axis for axis, size in cfg.sizes.items() if size == -1), None)
    own = {m for spec in jax.tree.leaves(specs) for axis in spec.axes for m in PARAM_RULES.get(axis, ())}
    for axis in ("stage", "expert", "context"):
        if sizes[axis] > 1 and axis not in (*supported, *(own & {"expert"})):
            raise ShardingError(f"mesh.{axis}={sizes[axis]}: not yet for this model; set mesh.{axis}=1")
    for name in sorted({*cfg.allow_replicated} - {*PARAM_RULES, *names(specs)}):  # the first of several is no chance
        near = difflib.get_close_matches(name, [*PARAM_RULES, *names(specs)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ShardingError(
            f"mesh.allow_replicated names {name!r}, which is neither an axis nor a parameter of this model{hint}"
        )
    rules = {name: _present(axes, sizes) for name, axes in PARAM_RULES.items()}
    activations = {name: _present(axes, sizes) for name, axes in ACTIVATION_RULES.items()}
    if cfg.splits_sequence:
        activations["residual_seq"] = _present(("context", "tensor"), sizes)
    if sizes["stage"] > 1:
        depths = [spec.shape[0] for spec in jax.tree.leaves(specs) if spec.stacked]
        check_stages(cfg, sizes["stage"], max(depths, default=0))
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
    how: dict[str, Any] = {"pipeline_microbatches": cfg.pipeline_microbatches, "pipeline_repeats": cfg.pipeline_repeats}
    resolved = Layout(sizes, rules, activations, rest=rest, exchange=cfg.context_exchange, **how)
    notes += _check_replication(cfg, resolved, specs)
    return replace(resolved, notes=tuple(notes))


def on_the_mesh(specs: Any, cfg: MeshConfig | None = None, supported: tuple[str, ...] = ()) -> Layout:
    """Return the layout of a model on the mesh that `jax.set_mesh` has set, as `layout` does; `UNSHARDED` without one.

    Raises:
      ShardingError: as `layout`, or the mesh has other axes than `make_mesh` gives it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return UNSHARDED
    if mesh.axis_names != MESH_AXES:
        raise ShardingError(f"the mesh that is set has the axes {mesh.axis_names}: make it with bigjax.make_mesh")
    return layout(cfg or MeshConfig(), mesh, specs, supported)


def fit(cfg: Config, mesh: Any, specs: Any, notes: tuple[str, ...] = ()) -> Layout:
    """Return the layout of a run on `mesh` (concrete or abstract) after checking that its batch and rows fit too.

    Its notes come after `notes`, what was decided before.

    Raises:
      ShardingError: as in `layout`, `check_stages`, `check_batch` and `check_sequence`, or for what `exchange.problems`
        finds.
    """
    resolved = layout(cfg.mesh, mesh, specs, cfg.model.named_family.mesh_axes)
    resolved = replace(resolved, notes=(*notes, *resolved.notes))
    if resolved.stages > 1:
        check_stages(cfg.mesh, resolved.stages, cfg.model.num_layers, cfg.model.period)
        if cfg.model.layers != "scan":
            raise ShardingError(
                f"mesh.stage={resolved.stages} takes layers in a loop, not model.layers={cfg.model.layers!r}: set "
                "model.layers='scan'"
            )
    check_batch(cfg.train.global_batch_size, cfg.train.num_microbatches, resolved)
    if (ways := resolved.sizes["context"]) > 1:
        how = exchange.choose(cfg.model, resolved.exchange, cfg.data.seq_len, ways, resolved.ways("heads"))
        for problem in exchange.problems(cfg, how, ways, resolved.ways("heads")):
            raise ShardingError(problem)
        said = f"mesh.context={ways}: the parts of a row attend to each other by {how}"
        resolved = replace(resolved, exchange=how, notes=(*resolved.notes, said))
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
    return product_of(given, prod(sizes[axis] for axis in axes))


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


def check_stages(cfg: MeshConfig, stages: int, num_layers: int, period: int = 1) -> None:
    """Raise ShardingError unless stages can share the layers, whose kinds repeat after `period`, and microbatches."""
    problem = pipeline.layers_problem(num_layers, stages, cfg.pipeline_repeats, period)
    if problem := problem or pipeline.microbatches_problem(cfg.pipeline_microbatches, stages):
        raise ShardingError(problem)


def check_batch(global_batch_size: int, microbatches: int, resolved: Layout) -> None:
    """Raise ShardingError unless every device gets the same number of rows of every microbatch."""
    split = _present(BATCH_AXES, resolved.sizes)
    ways, over = prod(resolved.sizes[axis] for axis in split), _describe(split, resolved.sizes, resolved.rest)
    if resolved.pipeline_microbatches:  # so many of each stage, and so many of all rows
        ways *= resolved.pipeline_microbatches // resolved.stages
        others = tuple(axis for axis in split if axis != "stage")
        product = [f"mesh.pipeline_microbatches={resolved.pipeline_microbatches}"]
        over = product_of(product + [_describe((axis,), resolved.sizes, resolved.rest) for axis in others], ways)
    rows = global_batch_size // microbatches
    if rows % ways:
        near = max(round(rows / ways), 1) * ways * microbatches
        raise ShardingError(
            f"train.global_batch_size={global_batch_size} in train.microbatches={microbatches} gives {rows} rows, "
            f"not divisible by {over}: set train.global_batch_size={near}"
        )


def check_sequence(seq_len: int, resolved: Layout, field: str = "data.seq_len") -> None:
    """Raise ShardingError unless the mesh axes that split the sequence divide it."""
    if seq_len % resolved.ways("residual_seq"):
        over = _describe(resolved.over("residual_seq"), resolved.sizes, None)
        why = " (mesh.shard_sequence=True)" if "tensor" in resolved.over("residual_seq") else ""
        raise ShardingError(f"{field}={seq_len} is not divisible by {over}{why}")
