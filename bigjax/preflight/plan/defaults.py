"""What `auto` means in a config on given devices: the best of its plans, by the analytic model, that fits them."""

from collections.abc import Iterator
from contextlib import suppress
from math import prod
from typing import Any

from bigjax import sharding
from bigjax.config import BATCH_AXES, Config, auto
from bigjax.errors import UserError
from bigjax.models.attention.backends import ATTENTION_ORDER
from bigjax.preflight.plan import candidates, devices
from bigjax.preflight.plan.candidates import REMATS, Candidate, Changes
from bigjax.run.chips import PlanError, Topology

LAYOUTS_KEPT = 48
"""Meshes for which all of `REMATS` are compared."""

ROOM = 0.75
"""The share of a chip's memory that a plan may need by the analytic model, which has been a quarter below the compiler
(`benchmarks.analytic_memory`)."""


def resolved(cfg: Config, topology: Topology) -> tuple[Config, Changes]:
    """Return a run without `auto` on `topology`, and what was resolved, by the path of the field.

    What is not `auto` stays. Of the rest, attention is the first of `ATTENTION_ORDER` that can do what the layers ask
    for, the loss is split where it can be, and the sequence where `mesh.tensor` is above 1. Then the mesh, remat and
    microbatches are those of the fastest plan, by `candidates.rank`, among those within `ROOM`; the smallest where none
    is. On CPUs everything is `auto.PLAIN`.

    Raises:
      UserError: no mesh divides the batch and the model.
    """
    unresolved = auto.unresolved(cfg)
    if topology.platform == "cpu" or not unresolved:
        return auto.plain(cfg), {path: auto.PLAIN[path] for path in unresolved}
    for name in _attention(cfg, topology.platform) if "model.attention" in unresolved else (None,):
        kernel = {} if name is None else {"model.attention": name}
        if plans := _plans(cfg, kernel, topology, unresolved):  # else a mesh leaves this kernel too little of a row
            return plans[0].cfg, plans[0].changes
    candidates.candidate(auto.plain(cfg), {}, topology)  # says why not, of the mesh as it is
    raise UserError("no mesh divides the batch and the model")


def here(cfg: Config, found: list[Any]) -> tuple[Config, Changes]:
    """As `resolved`, on devices that are here. Those without figures get what needs none.

    Raises:
      UserError: as `resolved`.
    """
    if not auto.unresolved(cfg):
        return cfg, {}
    try:
        return resolved(cfg, devices.at_hand(found))
    except PlanError:
        changes = {path: auto.PLAIN[path] for path in auto.unresolved(cfg)}
        if "model.attention" in changes:
            changes["model.attention"] = _attention(cfg, found[0].platform)[0]
        return candidates.apply(cfg, changes), changes


def for_use(cfg: Config, found: list[Any]) -> Config:
    """Return a trained run without `auto` on devices that are here: as `here`, or plain where its batch suits no mesh.

    What is only evaluated need not be split as it was trained.
    """
    try:
        return here(cfg, found)[0]
    except UserError:
        return candidates.apply(auto.plain(cfg), {"model.attention": cfg.model.attention})


def notes(changes: Changes) -> tuple[str, ...]:
    """Return what is said of the fields that were resolved at the start of a run: nothing where all are plain."""
    said = [f"{path}={value}" for path, value in changes.items() if value != auto.PLAIN.get(path)]
    return (f"auto: {', '.join(said)}",) if said else ()


def _attention(cfg: Config, platform: str) -> list[str]:
    """Return the back ends that can do what the layers ask for, best first; `reference` can."""
    order = ATTENTION_ORDER.get(platform, ())
    return [name for name in order if not candidates.kernel_problem(cfg, name, platform)] or ["reference"]


def _plans(cfg: Config, kernel: Changes, topology: Topology, unresolved: list[str]) -> list[Candidate]:
    """Return the plans with an attention kernel that the mesh admits, best first.

    All meshes are judged with as much recomputed as can be, and then the best of them with less.
    """
    choose = "model.remat" in unresolved
    leanest = kernel | ({"model.remat": REMATS[-1]} if choose else {})
    plans = []
    for layout, parts in _layouts(cfg, topology, unresolved):
        with suppress(UserError):
            plans.append((_fewest_parts(cfg, leanest | layout, parts, topology), layout, parts))
    plans.sort(key=lambda plan: _order(plan[0], topology))
    if choose:
        for _, layout, parts in plans[:LAYOUTS_KEPT]:
            for remat in REMATS[:-1]:
                with suppress(UserError):
                    changes = kernel | layout | {"model.remat": remat}
                    plans.append((_fewest_parts(cfg, changes, parts, topology), layout, parts))
    return sorted((plan for plan, _, _ in plans), key=lambda plan: _order(plan, topology))


def _order(plan: Candidate, topology: Topology) -> tuple:
    """Return what sorts plans: those that fit by their time, the others, after them, by what they need."""
    needed = plan.needed_bytes_per_chip
    return (False, *plan.rank) if needed <= _limit(topology) else (True, needed)


def _layouts(cfg: Config, topology: Topology, unresolved: list[str]) -> Iterator[tuple[Changes, list[int]]]:
    """Yield the values of unresolved fields of the mesh and the loss that are worth comparing, each with the numbers of
    microbatches that there can be; with none where the config says how many."""
    for mesh in _meshes(cfg, topology, unresolved):
        sizes = sharding.mesh_shape(candidates.apply(cfg, mesh).mesh, topology.num_devices)
        rows = cfg.train.global_batch_size // prod(sizes[axis] for axis in BATCH_AXES)
        chunks = {"train.loss_chunks": _loss_chunks(cfg, mesh, sizes)} if "train.loss_chunks" in unresolved else {}
        parts = candidates.divisors(max(rows, 1)) if "train.microbatches" in unresolved else []
        for split in _sequence_splits(cfg, sizes) if "mesh.shard_sequence" in unresolved else ({},):
            yield mesh | split | chunks, parts


def _fewest_parts(cfg: Config, changes: Changes, parts: list[int], topology: Topology) -> Candidate:
    """Return the plan with the fewest microbatches that fits, or with the most where none does."""
    if not parts:
        return candidates.candidate(cfg, changes, topology)
    most = candidates.candidate(cfg, changes | {"train.microbatches": parts[-1]}, topology)
    if most.needed_bytes_per_chip > _limit(topology):
        return most
    for count in parts[:-1]:
        found = candidates.candidate(cfg, changes | {"train.microbatches": count}, topology)
        if found.needed_bytes_per_chip <= _limit(topology):
            return found
    return most


def _sequence_splits(cfg: Config, sizes: dict[str, int]) -> Iterator[Changes]:
    """Yield whether activations are split along the sequence: where they can be, for what the TPU compiler makes of it.

    Not always so in an encoder-decoder, each of whose layers that write would gather what was read.
    """
    able = sizes["tensor"] > 1 and cfg.data.seq_len % sizes["tensor"] == 0
    yield {"mesh.shard_sequence": able}
    if able and cfg.model.kind == "encdec":
        yield {"mesh.shard_sequence": False}


def _meshes(cfg: Config, topology: Topology, unresolved: list[str]) -> Iterator[Changes]:
    """Yield the meshes to choose from: all that `candidates.meshes` knows, if the config gives no axis.

    Else those that give the devices that are left to data and fsdp.
    """
    if "mesh.fsdp" not in unresolved:
        yield {}
        return
    given = {axis: size for axis, size in cfg.mesh.sizes.items() if axis != "data" and size != 1}
    if not cfg.mesh.data and given in ({}, {"slice": topology.num_slices}):
        for mesh in candidates.meshes(cfg, topology):
            yield {path: value for path, value in mesh.items() if path != "mesh.shard_sequence"}
        return
    if cfg.mesh.data or -1 in given.values():  # that axis has what is left
        yield {"mesh.fsdp": 1}
        return
    for fsdp in candidates.divisors(max(topology.num_devices // prod(given.values()), 1)):
        yield {"mesh.fsdp": fsdp}


def _loss_chunks(cfg: Config, changes: Changes, sizes: dict[str, int]) -> int:
    """Return `candidates.LOSS_CHUNKS` where the task can split its loss and the rows divide, else 1."""
    chunks = candidates.LOSS_CHUNKS
    own = cfg.data.seq_len // sizes["context"]
    return chunks if own % chunks == 0 and candidates.is_valid(cfg, changes | {"train.loss_chunks": chunks}) else 1


def _limit(topology: Topology) -> float:
    return ROOM * topology.chip.hbm_bytes
