"""How fast a step could be at best on given chips, and how fast it is likely to be, judged by published runs."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from bigjax.preflight.plan import links
from bigjax.preflight.plan.traffic import Collective, sent_bytes
from bigjax.run.chips import Topology, parse_topology

QUANTILES = {"low": 0.1, "mid": 0.5, "high": 0.9}
"""What an estimate says: these quantiles of the published runs."""

MIN_RUNS = 4
"""Fewer published runs of a platform than this, and the runs of all platforms calibrate its estimates."""


@dataclass(frozen=True)
class Work:
    """What one JAX device does in one step.

    Attributes:
      model_flops: FLOPs of the maths alone, by the convention of `science.flops.model_flops_per_token`.
      compiled_flops: FLOPs the program executes, recomputation included.
      hbm_bytes: bytes the compiled program moves to and from memory.
      hbm_bytes_min: bytes that any program must move; it bounds the step, `hbm_bytes` does not.
      ici_bytes, dcn_bytes: bytes sent on the fast and on the slow link.
      overlapped_share: the part of the sent bytes that the program sends while it computes, 0 to 1.
      dtype: of the matrix products.
      low_precision: what the peak of those is called that are in another format; low_precision_flops: theirs, of all.
      cycles: what the compiler expects the program to take, kernels and waits not counted; None if it says nothing.
    """

    model_flops: float
    compiled_flops: float
    hbm_bytes: float
    hbm_bytes_min: float
    ici_bytes: float = 0.0
    dcn_bytes: float = 0.0
    overlapped_share: float = 1.0
    dtype: str = "bfloat16"
    low_precision: str | None = None
    low_precision_flops: float = 0.0
    cycles: int | None = None


@dataclass(frozen=True)
class Roofline:
    """Bounds and estimates for one step; all times in seconds, all estimates by `QUANTILES`: `low`, `mid`, `high`.

    Attributes:
      seconds: the least time of `compute`, `hbm`, `ici` and `dcn`, each alone.
      bound: the slowest of them.
      mfu_limit: no program reaches a higher model FLOPs utilization, with everything overlapped. It can exceed 1,
        since the convention counts masked attention scores and a kernel may skip them.
      mfu_estimate: the limit times the efficiency of published runs.
      step_seconds_estimate: the step times that belong to them; its `low` belongs to the `high` of the MFU.
      exposed_link_seconds: what the traffic that this program does not overlap takes. No part of the estimate, as
        published runs wait for their links too.
      compiled_hbm_seconds: what the memory traffic of this program takes; no part of the estimate either.
      compiler_seconds: the cycles of this program at the clock of the chip, None if one of them is not known. No
        estimate is below them, since they leave kernels and waits out.
    """

    seconds: Mapping[str, float]
    bound: str
    mfu_limit: float
    mfu_estimate: Mapping[str, float]
    step_seconds_estimate: Mapping[str, float]
    exposed_link_seconds: float
    compiled_hbm_seconds: float
    compiler_seconds: float | None


def roofline(work: Work, topology: Topology, without: Collection[str] = ()) -> Roofline:
    """Return how fast `work` can be, and is likely to be, on each device of `topology`.

    The bound is the roofline of Williams et al. 2009 with two more roofs for the links: the step takes at least as long
    as its slowest resource. A ring on one axis of a torus cannot use the links of the others, so real traffic takes
    longer than `ici` says. `without` names published runs to leave out of the calibration.

    Raises:
      PlanError: the chip has no published peak for `work.dtype`, or for `work.low_precision`.
    """
    seconds = least_seconds(work, topology)
    bound = max(seconds, key=lambda name: seconds[name])
    limit = _limit(work, topology, seconds)
    clock = topology.chip.clock_hz
    program = work.cycles / clock if work.cycles and clock else None
    most = seconds[bound] / program if program else 1.0  # of the limit that this program can reach
    reached = {name: min(share, most) for name, share in efficiency(topology.platform, without).items()}
    return Roofline(
        seconds=seconds,
        bound=bound,
        mfu_limit=limit,
        mfu_estimate={name: limit * reached[name] for name in QUANTILES},
        step_seconds_estimate={
            name: seconds[bound] / reached[opposite]
            for name, opposite in zip(QUANTILES, reversed(QUANTILES), strict=True)
        },
        compiler_seconds=program,
        exposed_link_seconds=(1 - work.overlapped_share) * (seconds["ici"] + seconds["dcn"]),
        compiled_hbm_seconds=work.hbm_bytes * topology.chip.devices_per_chip / topology.chip.hbm_bytes_per_s,
    )


def of_step(
    topology: Topology, mesh_shape: Mapping[str, int], collectives: Sequence[Collective], **work: Any
) -> Roofline:
    """Return the roofline of a step that sends `collectives` on a mesh; `work` is the rest of `Work`."""
    sent = sum(one.bytes_per_chip for one in collectives)
    overlapped = sum(one.overlapped_bytes_per_chip for one in collectives)
    moved = links.bytes_by_link(collectives, mesh_shape, topology.devices_per_slice)
    return roofline(
        Work(
            ici_bytes=moved["ici"],
            dcn_bytes=moved["dcn"],
            overlapped_share=overlapped / sent if sent else 1.0,
            **work,
        ),
        topology,
    )


def least_seconds(work: Work, topology: Topology) -> dict[str, float]:
    """Return the least seconds that `compute`, `hbm`, `ici` and `dcn` each take for `work` on one device."""
    chip, share = topology.chip, 1 / topology.chip.devices_per_chip
    compute = (work.compiled_flops - work.low_precision_flops) / chip.peak(work.dtype)
    if work.low_precision:
        compute += work.low_precision_flops / chip.peak(work.low_precision)
    return {
        "compute": compute / share,
        "hbm": work.hbm_bytes_min / (chip.hbm_bytes_per_s * share),
        "ici": work.ici_bytes / (chip.ici_bytes_per_s * share),
        "dcn": work.dcn_bytes / (chip.dcn_bytes_per_s * share),
    }


def _limit(work: Work, topology: Topology, seconds: Mapping[str, float]) -> float:
    peak = topology.chip.peak(work.dtype) / topology.chip.devices_per_chip
    return work.model_flops / (peak * max(seconds.values()))


def efficiency(platform: str, without: Collection[str] = ()) -> dict[str, float]:
    """Return the `QUANTILES` of (published MFU / limit) over the published runs of `platform` that `without` lacks.

    Runs of all platforms count where `platform` has fewer than `MIN_RUNS`.
    """
    rows = [row for row in published_limits() if row["name"] not in without]
    own = [row for row in rows if row["platform"] == platform]
    ratios = [row["mfu"] / row["mfu_limit"] for row in (own if len(own) >= MIN_RUNS else rows)]
    return {name: float(np.quantile(ratios, share)) for name, share in QUANTILES.items()}


@dataclass(frozen=True)
class PublishedRun:
    """A training run with a published speed; see `published_runs.json`.

    Attributes:
      confirmed: `opened`, the figure was read on a page, or `memory`, it was not.
      params: all parameters; lookup_params: those of them that no matrix product uses.
      batch_tokens: tokens of one step on all chips.
      published: the figure as published. unit: `mfu` (a fraction), `flops` (model FLOP/s of a chip), or
        `hardware_flops` (FLOP/s of a chip, recomputation counted).
      counts_lookups, counted_attention: whether the source counts look-ups, and the part of the attention it counts.
      recompute: the part of the blocks' forward pass that runs again; executed_attention: the part of the attention
        scores that the kernel computes. Where they are not published, the least that can be.
      tensor, stage, fsdp, data: devices along each mesh axis.
    """

    name: str
    confirmed: str
    source: str
    topology: str
    num_slices: int
    tensor: int
    stage: int
    fsdp: int
    data: int
    params: int
    lookup_params: int
    num_layers: int
    d_model: int
    num_heads: int
    head_dim: int
    seq_len: int
    vocab_size: int
    batch_tokens: int
    precision: str
    recompute: float
    executed_attention: float
    published: float
    unit: str
    counts_lookups: bool
    counted_attention: float
    note: str = ""

    @property
    def topology_used(self) -> Topology:
        return parse_topology(self.topology, self.num_slices)

    @property
    def model_flops_per_token(self) -> float:
        """By the convention of `science.flops.model_flops_per_token`."""
        return self._flops_per_token(self.params - self.lookup_params, attention=1.0, recompute=0.0)

    @property
    def compiled_flops_per_token(self) -> float:
        return self._flops_per_token(self.params - self.lookup_params, self.executed_attention, self.recompute)

    @property
    def mfu(self) -> float:
        """The published figure as a model FLOPs utilization by this project's convention."""
        counted = self._flops_per_token(
            self.params - (0 if self.counts_lookups else self.lookup_params),
            self.counted_attention,
            self.recompute if self.unit == "hardware_flops" else 0.0,
        )
        peak = 1.0 if self.unit == "mfu" else self.topology_used.chip.peak(self.precision)
        return self.published / peak * self.model_flops_per_token / counted

    @property
    def work(self) -> Work:
        """The least that one device must do in one step.

        Weights are bfloat16. Memory: each device reads its tensor and stage shard of them in the forward and the
        backward pass, and reads and writes 12 bytes of optimizer state for each parameter it keeps. Links: `fsdp`
        gathers weights twice and scatters gradients once, `data` all-reduces gradients, and `tensor` all-reduces the
        activations four times a layer (Shoeybi et al. 2019, section 3). What must cross hosts is shared by the ports
        of the group's members on a host.
        """
        topology = self.topology_used
        tokens = self.batch_tokens / topology.num_devices
        matmul_params = self.params - self.lookup_params
        weights = 2 * matmul_params // (self.tensor * self.stage)
        activations = 2 * self.d_model * self.batch_tokens // (self.data * self.fsdp)
        near = min(self.fsdp, topology.devices_per_slice // self.tensor)
        ici = 4 * self.num_layers / self.stage * sent_bytes("all-reduce", activations, self.tensor)
        ici += 3 * sent_bytes("all-gather", weights, near)
        dcn = 3 * sent_bytes("all-gather", weights, self.fsdp // near) / near
        dcn += sent_bytes("all-reduce", weights // self.fsdp, self.data)
        memory = 2 * weights + 24 * matmul_params / topology.num_devices
        return Work(
            model_flops=self.model_flops_per_token * tokens,
            compiled_flops=self.compiled_flops_per_token * tokens,
            hbm_bytes=memory,
            hbm_bytes_min=memory,
            ici_bytes=ici,
            dcn_bytes=dcn,
            dtype=self.precision,
        )

    def _flops_per_token(self, params: int, attention: float, recompute: float) -> float:
        scores = 4.0 * self.num_layers * self.num_heads * self.head_dim * self.seq_len * attention
        blocks = self.params - self.lookup_params - self.vocab_size * self.d_model
        return 6.0 * params + 3 * scores + recompute * (2.0 * blocks + scores)


@cache
def published_runs() -> tuple[PublishedRun, ...]:
    """Return the runs of `published_runs.json`."""
    text = resources.files("bigjax.preflight.plan").joinpath("published_runs.json").read_text()
    return tuple(PublishedRun(**row) for row in json.loads(text))


@cache
def published_limits() -> tuple[Mapping[str, Any], ...]:
    """Return one row for each published run: `name`, `platform`, `mfu`, `mfu_limit`, `bound`, `confirmed`, `source`.

    `mfu` is the published figure by this project's convention. A limit below it would show a mistake in one of them.
    """
    rows = []
    for run in published_runs():
        seconds = least_seconds(run.work, run.topology_used)
        rows.append(
            {
                "name": run.name,
                "platform": run.topology_used.platform,
                "mfu": run.mfu,
                "mfu_limit": _limit(run.work, run.topology_used, seconds),
                "bound": max(seconds, key=lambda name: seconds[name]),
                "confirmed": run.confirmed,
                "source": run.source,
            }
        )
    return tuple(rows)
