"""Changes of a config that leave its maths alone: other meshes, remat, microbatches, loss chunks, attention kernels."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

from bigjax import config, sharding
from bigjax.config import BATCH_AXES, Config, recipes
from bigjax.errors import UserError
from bigjax.models.attention import backends as attention
from bigjax.models.attention.kernels import unmet
from bigjax.preflight.plan import roofline
from bigjax.preflight.plan.analytic import estimate as analytic
from bigjax.preflight.plan.analytic.estimate import Estimate
from bigjax.preflight.plan.roofline import Roofline
from bigjax.run.chips import Topology

REMATS = ("none", "save:qkv,attn_mixed,mlp_hidden", "dots", "save:qkv,attn_mixed", "full")
"""What a search tries, from the most memory to the least."""

MAX_STAGES, REPEATS = 8, (1, 2)
"""The most stages that a search tries, and how often a batch goes through them."""

LOSS_CHUNKS = 8
KERNELS = {platform: attention.ATTENTION_ORDER[platform][0] for platform in ("tpu", "gpu")}
"""The attention kernel of a platform that never stores the scores."""

Changes = dict[str, Any]
"""Path of a field -> new value, as in `--config.PATH=VALUE`."""


def apply(cfg: Config, changes: Changes) -> Config:
    """Return `cfg` with `changes`, e.g. `{"model.remat": "full", "mesh.fsdp": 64}`.

    Raises:
      ConfigError: the fields clash.
    """
    return config.replaced(cfg, changes)


def flags(changes: Changes) -> str:
    """Return the changes as they are pasted into a command line."""
    parts = []
    for path, value in changes.items():
        if isinstance(value, bool):
            parts.append(f"--config.{path}" if value else f"--noconfig.{path}")
        else:
            parts.append(f"--config.{path}={value}")
    return " ".join(parts)


@dataclass(frozen=True)
class Candidate:
    """A config on a topology, by the analytic model: per chip memory, and seconds a step."""

    changes: Changes
    cfg: Config
    estimate: Estimate
    roofline: Roofline
    needed_bytes_per_chip: int

    @property
    def seconds(self) -> float:
        """The middle of the estimate of a step's time."""
        return self.roofline.step_seconds_estimate["mid"]

    @property
    def rank(self) -> tuple[float, float]:
        """What a search sorts by: see `rank`."""
        return rank(self.seconds, self.roofline.exposed_link_seconds, self.roofline.seconds)


def rank(step_s: float, exposed_link_s: float, seconds: Mapping[str, float]) -> tuple[float, float]:
    """Return the key that sorts plans: estimated step plus traffic that nothing hides, then the sum of all resources.

    Published runs, which the estimate is calibrated on, wait for their links too, so the estimate leaves that time out;
    between two plans for the same run it decides.
    """
    return round(step_s + exposed_link_s, 6), sum(seconds.values())


def candidate(cfg: Config, changes: Changes, topology: Topology) -> Candidate:
    """Judge `cfg` with `changes` on `topology` in milliseconds.

    Raises:
      UserError: the changed config does not fit the mesh.
    """
    changed, sizes, estimate = _estimated(cfg, changes, topology)
    found = roofline.of_step(
        topology,
        sizes,
        estimate.collectives,
        model_flops=estimate.model_flops,
        compiled_flops=estimate.compiled_flops,
        hbm_bytes=estimate.hbm_bytes,
        hbm_bytes_min=estimate.hbm_bytes_min,
        dtype=changed.model.dtype,
        low_precision=recipes.peak_name(changed.model.matmul),
        low_precision_flops=estimate.low_precision_flops,
    )
    return Candidate(changes, changed, estimate, found, _needed_bytes_per_chip(estimate, topology))


def _estimated(cfg: Config, changes: Changes, topology: Topology) -> tuple[Config, dict[str, int], Estimate]:
    """Return the changed config, its mesh and what the analytic model says of it."""
    changed = apply(cfg, changes)
    sizes = sharding.mesh_shape(changed.mesh, topology.num_devices)
    return changed, sizes, analytic.estimate(changed, sizes)


def _needed_bytes_per_chip(estimate: Estimate, topology: Topology) -> int:
    return estimate.total_bytes * (topology.num_devices // topology.num_chips)


def meshes(cfg: Config, topology: Topology) -> Iterator[Changes]:
    """Yield every way to give the devices of a slice to data, fsdp, tensor and, of a sparse model, expert.

    Tensor stays within a fast domain. Where there are several, slices or machines, they may also be stages. Where there
    are fewer rows than devices, and the family can, they also go to context, which splits rows.
    """
    yield from _meshes(cfg, topology, 1, 1)
    if "stage" not in cfg.model.named_family.mesh_axes or cfg.model.layers != "scan":
        return
    domains = topology.num_devices // topology.devices_per_slice
    for stage in (size for size in divisors(domains) if 1 < size <= MAX_STAGES):
        for repeats in REPEATS:
            if cfg.model.num_layers % (stage * repeats * cfg.model.period) == 0:
                yield from _meshes(cfg, topology, stage, repeats)


def _meshes(cfg: Config, topology: Topology, stage: int, repeats: int) -> Iterator[Changes]:
    """Yield the meshes with so many stages; slices become stages, or else the rest of the devices does."""
    slices = topology.num_slices // gcd(topology.num_slices, stage)
    per_slice = topology.num_devices // slices // stage
    staged = {"mesh.stage": stage, "mesh.pipeline_repeats": repeats} if stage > 1 else {}
    widest = min(topology.devices_per_slice, cfg.model.num_heads)
    experts = cfg.model.moe.num_experts
    split_rows = cfg.train.global_batch_size < topology.num_devices and "context" in cfg.model.named_family.mesh_axes
    for tensor in (size for size in divisors(per_slice) if size <= widest):
        left = per_slice // tensor
        for context in (size for size in divisors(left) if size == 1 or (split_rows and stage == 1)):
            for expert in (size for size in divisors(left // context) if size == 1 or experts % size == 0 < experts):
                for fsdp in divisors(left // context // expert):
                    changes: Changes = {
                        "mesh.slice": slices,
                        **staged,
                        "mesh.data": left // context // expert // fsdp,
                        "mesh.fsdp": fsdp,
                        "mesh.tensor": tensor,
                    }
                    if experts:
                        changes["mesh.expert"] = expert
                    if split_rows:
                        changes["mesh.context"] = context
                        if context == 1:
                            changes["mesh.context_exchange"] = "auto"
                    for shard_sequence in (False, True) if tensor > 1 else (False,):
                        yield {**changes, "mesh.shard_sequence": shard_sequence}


def variants(cfg: Config, topology: Topology) -> Iterator[Candidate]:
    """Yield `cfg` as it is and every mesh x remat x microbatches that it can have on `topology`.

    All are judged by the analytic model. Where the model can, those have the attention kernel that a TPU never stores
    the scores with, and a loss in chunks: both only save.
    """
    rows, always = cfg.train.global_batch_size, {}
    if topology.platform == "tpu" and kernel_serves(cfg, KERNELS["tpu"], "tpu"):
        always["model.attention"] = KERNELS["tpu"]
    if cfg.train.num_loss_chunks == 1 and is_valid(cfg, chunks := {"train.loss_chunks": LOSS_CHUNKS}):
        always |= chunks
    with suppress(UserError):  # as it is, it may not fit the mesh
        yield candidate(cfg, {}, topology)
    for mesh in meshes(cfg, topology):
        ways = prod(mesh.get(f"mesh.{axis}", 1) for axis in BATCH_AXES)
        if rows % ways:
            continue
        for remat in REMATS:
            for microbatches in divisors(rows // ways):
                changes = {**mesh, **always, "model.remat": remat, "train.microbatches": microbatches}
                try:
                    yield candidate(cfg, changes, topology)
                except UserError:
                    break


def kernel_serves(cfg: Config, name: str, platform: str) -> bool:
    """Return whether an attention kernel can replace the one of a model on a platform."""
    return cfg.model.kind != "rnn" and not kernel_problem(cfg, name, platform)


def kernel_problem(cfg: Config, name: str, platform: str) -> str:
    """Return why an attention kernel cannot do what the layers of a model ask for on a platform; empty if it can, and
    where there is no attention."""
    model, segments = cfg.model, cfg.data.document_mask
    if model.kind == "rnn" or name == "auto":
        return ""
    missing = attention.lacking(
        name,
        platform=platform,
        segments=segments,
        window=next(filter(None, model.windows), None),
        softcap=model.attn_softcap,
        dropout=model.dropout,
        dtype=model.dtype,
        causal=model.kind == "decoder",
        cross=model.kind == "encdec",
        bias=model.positions == "relative",
    )
    if missing:
        return f"model.attention='{name}' does not support {missing}"
    need = unmet(name, cfg.data.seq_len, model.head_dim, segments)
    return f"model.attention='{name}' needs {need}" if need else ""


def is_valid(cfg: Config, changes: Changes) -> bool:
    """Return whether the changed fields suit each other."""
    try:
        apply(cfg, changes)
    except UserError:
        return False
    return True


def savings(cfg: Config, topology: Topology, needed_bytes_per_chip: int) -> list[dict[str, Any]]:
    """Return what would save memory, the most first: single changes, then all of them together.

    Savings are differences of the analytic model; `fits` subtracts them from `needed_bytes_per_chip`.
    """

    def needed(changes: Changes) -> int:
        return _needed_bytes_per_chip(_estimated(cfg, changes, topology)[2], topology)

    base, hbm = needed({}), topology.chip.hbm_bytes
    found = []
    for changes in _single_changes(cfg, topology):
        try:
            saved = base - needed(changes)
        except UserError:
            continue
        if saved > 0.01 * hbm:
            found.append((saved, changes))
    found.sort(key=lambda pair: -pair[0])
    together: Changes = {}
    for _, changes in found:
        if not set(changes) & set(together):
            together |= changes
    rows = found[:5]
    if len(found) > 1:
        try:
            saved = base - needed(together)
            rows.append((saved, together))
        except UserError:
            pass
    return [
        {
            "change": flags(changes),
            "saves_bytes_per_chip": saved,
            "fits": needed_bytes_per_chip - saved <= hbm,
            "source": "analytic",
        }
        for saved, changes in rows
    ]


def _single_changes(cfg: Config, topology: Topology) -> Iterator[Changes]:
    sizes = sharding.mesh_shape(cfg.mesh, topology.num_devices)
    if cfg.model.remat != "full":
        yield {"model.remat": "full"}
    kernel = KERNELS.get(topology.platform)
    if kernel and cfg.model.attention != kernel and kernel_serves(cfg, kernel, topology.platform):
        yield {"model.attention": kernel}
    for chunks in (8, 16, 4):
        if cfg.train.num_loss_chunks < chunks and is_valid(cfg, {"train.loss_chunks": chunks}):
            yield {"train.loss_chunks": chunks}
            break
    rows = cfg.train.global_batch_size // prod(sizes[axis] for axis in BATCH_AXES) // cfg.train.num_microbatches
    if rows > 1:
        yield {"train.microbatches": cfg.train.num_microbatches * rows}
    pairs = [("data", "fsdp"), ("fsdp", "tensor"), ("data", "tensor")]
    if cfg.model.moe.num_experts:
        pairs += [("data", "expert"), ("fsdp", "expert")]
    if rows <= 1 and "context" in cfg.model.named_family.mesh_axes:  # before that a device can have fewer rows
        pairs += [("data", "context"), ("fsdp", "context")]
    for source, target in pairs:
        if sizes[source] % 2 == 0:
            yield {f"mesh.{source}": sizes[source] // 2, f"mesh.{target}": 2 * sizes[target]}
    if sizes["tensor"] > 1 and not cfg.mesh.splits_sequence:
        yield {"mesh.shard_sequence": True}


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, in ascending order."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def changed_fields(cfg: Config, changes: Changes) -> Changes:
    """Return those of `changes` that differ from `cfg`."""

    def current(path: str) -> Any:
        section, _, name = path.partition(".")
        return getattr(getattr(cfg, section), name)

    return {path: value for path, value in changes.items() if current(path) != value}


def pinned(cfg: Config, topology: Topology) -> Config:
    """Return `cfg` with `mesh.slice` set to the topology's slices, unless the config says otherwise."""
    if topology.num_slices > 1 and cfg.mesh.slice == 1:
        return config.replace(cfg, mesh={"slice": topology.num_slices})
    return cfg
