"""The chips a plan can be made for: their published figures with sources, and topologies written as `v5p:8x8x4`."""

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

from bigjax.errors import UserError

PEAK_FALLBACK = {
    "tpu": {"float32": "bfloat16", "float16": "bfloat16"},
    "gpu": {"float32": "tensorfloat32", "float16": "bfloat16"},
}
"""The dtype whose peak stands for one without a published peak.

JAX's default matmul precision multiplies float32 in one bfloat16 pass on a TPU and in TensorFloat-32 on a GPU; both
vendors give float16 the rate of bfloat16.
"""

CUBE_SIDE = 4
"""Chips along each axis of the cube that slices of a 3D torus are built of."""


class PlanError(UserError):
    """A plan was asked for something that does not exist; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip, all per chip and dense; a chip may be several JAX devices.

    Attributes:
      name: what topologies call it, as `v5p` or `h100`.
      device_kind: what JAX reports for its devices, or how that begins.
      same_peak_kinds: beginnings of the `device_kind` of others that compute as fast but may have other memory.
      devices_per_chip: JAX devices of one chip.
      peak_flops: FLOP/s by dtype.
      hbm_bytes: memory, in bytes.
      hbm_bytes_per_s: memory bandwidth.
      ici_bytes_per_s: what one chip can send in all directions at once on its fast link: ICI of a TPU, NVLink of a GPU.
      ici_links: links that share it; ici_axes: dimensions of the torus they form, 1 for a switch.
      dcn_bytes_per_s: what one chip can send on the slow link, its share of the host's network ports.
      chips_per_host: chips of a full host.
      max_chips: the most chips of one slice of a TPU, or of a GPU cluster.
      max_side: the most chips along one axis.
      fast_domain_chips: the most chips that the fast link connects.
      clock_hz: cycles of a core in a second, None where none is published.
      sources: where each figure is from, by field, `peak_flops.DTYPE` for the peaks.
      note: what was assumed.
    """

    name: str
    vendor_name: str
    platform: Literal["tpu", "gpu"]
    device_kind: str
    same_peak_kinds: tuple[str, ...] = field(kw_only=True, default=())
    devices_per_chip: int
    peak_flops: Mapping[str, float] = field(hash=False)
    hbm_bytes: int
    hbm_bytes_per_s: float
    ici_bytes_per_s: float
    ici_links: int
    ici_axes: int
    dcn_bytes_per_s: float
    chips_per_host: int
    max_chips: int
    max_side: int
    fast_domain_chips: int
    clock_hz: float | None = field(kw_only=True, default=None)
    sources: Mapping[str, str] = field(hash=False)
    note: str

    def peak(self, dtype: str) -> float:
        """Return the dense FLOP/s of one chip for matrix products in `dtype`, or in what `PEAK_FALLBACK` puts for it.

        Raises:
          PlanError: neither `dtype` nor what stands for it has a published peak.
        """
        known = dtype if dtype in self.peak_flops else PEAK_FALLBACK[self.platform].get(dtype, dtype)
        if known not in self.peak_flops:
            names = ", ".join(self.peak_flops)
            raise PlanError(f"{self.name} has no published peak for {dtype}: choose one of {names}")
        return self.peak_flops[known]


@dataclass(frozen=True)
class Topology:
    """Chips and how they are wired.

    `shape` is the torus of one TPU slice, or (hosts, GPUs per host). `num_slices` TPU slices are joined by the slow
    link. GPUs have one "slice" for every NVLink domain: a host, or up to 18 hosts of GB200 NVL72.
    """

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def platform(self) -> str:
        return self.chip.platform

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip

    @property
    def devices_per_slice(self) -> int:
        """JAX devices that reach each other over the fast link."""
        if self.platform != "gpu":
            return math.prod(self.shape) * self.chip.devices_per_chip
        hosts, gpus = self.shape
        return min(hosts, _hosts_per_domain(self.chip)) * gpus

    @property
    def closed_axes(self) -> tuple[bool, ...]:
        """Whether each axis of a TPU slice closes into a ring; never for GPUs, whose fast link is a switch.

        Cubes of 4x4x4 chips (v4, v5p, TPU7x) are joined by optical switches, which also close their axes, so a slice
        of whole cubes is a torus and a smaller one is a mesh (Jouppi et al. 2023, section 2.2). On v5e and v6e an axis
        closes where it spans the whole side of a pod.
        """
        if self.platform == "gpu":
            return (False,) * len(self.shape)
        if self.chip.ici_axes == 3:
            return (all(size % CUBE_SIDE == 0 for size in self.shape),) * 3
        return tuple(size == self.chip.max_side for size in self.shape)

    @property
    def libtpu_name(self) -> str:
        """The name of one slice as libtpu knows it; a PlanError for GPUs."""
        if self.platform != "tpu":
            raise PlanError(f"{self.chip.name} is a GPU, which libtpu cannot compile for: use xla_gpu_name")
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def xla_gpu_name(self) -> str:
        """The topology as XLA writes it for GPUs, slices x hosts x GPUs per host; a PlanError for TPUs."""
        if self.platform != "gpu":
            raise PlanError(f"{self.chip.name} is a TPU: use libtpu_name")
        return "x".join(map(str, (self.num_slices, *self.shape)))


def chips() -> dict[str, Chip]:
    """Return every chip by name."""
    return dict(_chips())


def chip(name: str) -> Chip:
    """Return the chip called `name`; a PlanError with the nearest names if there is none."""
    table = _chips()
    if name not in table:
        near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.5) or list(table)
        raise PlanError(f"there is no chip {name!r}: did you mean {' or '.join(near)}?")
    return table[name]


def chip_of_device_kind(kind: str, *, same_peak: bool = False) -> Chip | None:
    """Return the chip whose devices JAX reports as `kind`, or with `same_peak` one that computes as fast, or None."""
    begins = {
        name: known
        for known in _chips().values()
        for name in (known.device_kind, *(known.same_peak_kinds if same_peak else ()))
        if kind.startswith(name)
    }
    return begins[max(begins, key=len)] if begins else None


def parse_topology(text: str, num_slices: int = 1) -> Topology:
    """Return the topology that `text` names: `CHIP:AxB` for v5e, v6e and GPUs, `CHIP:AxBxC` for v4, v5p and tpu7x.

    The sizes count chips along the axes of a TPU slice, or are hosts x GPUs per host.

    Raises:
      PlanError: an unknown chip, a wrong number of sizes, a size that is not supported, or slices of GPUs.
    """
    name, _, sizes = text.partition(":")
    known = chip(name)
    form = {"tpu": "x".join("ABC"[: known.ici_axes]), "gpu": "HOSTSxGPUS"}[known.platform]
    if not re.fullmatch(r"\d+(x\d+)*", sizes):
        raise PlanError(f"{text!r} is not a topology: write {name}:{form} with whole numbers")
    shape = tuple(map(int, sizes.split("x")))
    if len(shape) != form.count("x") + 1:
        raise PlanError(f"{text} has {len(shape)} sizes and {name} needs {form.count('x') + 1}: write {name}:{form}")
    if min(shape) < 1 or num_slices < 1:
        raise PlanError(f"{text} with num_slices={num_slices} has no chips: every size must be at least 1")
    if math.prod(shape) > known.max_chips:
        raise PlanError(f"{text} has {math.prod(shape)} chips and {name} has at most {known.max_chips}: use fewer")
    problem = _gpu_problem(known, shape, num_slices) if known.platform == "gpu" else _tpu_problem(known, shape)
    if problem:
        raise PlanError(f"{text} is not supported: {problem}")
    return Topology(known, shape, num_slices)


def _tpu_problem(known: Chip, shape: tuple[int, ...]) -> str | None:
    if max(shape) > known.max_side:
        return f"an axis of {known.name} has at most {known.max_side} chips"
    if known.ici_axes == 2 and any(size & (size - 1) for size in shape):
        return f"an axis of {known.name} is a power of two"
    if known.ici_axes == 3 and any(size > 2 and size % CUBE_SIDE for size in shape):
        return f"an axis of {known.name} is 1, 2 or a multiple of 4"
    return None


def _gpu_problem(known: Chip, shape: tuple[int, ...], num_slices: int) -> str | None:
    hosts, gpus = shape
    domain = _hosts_per_domain(known)
    if num_slices > 1:
        return f"num_slices={num_slices} is for TPUs, and GPUs across hosts are written as {known.name}:HOSTSxGPUS"
    if gpus > known.chips_per_host:
        return f"a host has at most {known.chips_per_host} GPUs"
    if hosts > domain and hosts % domain:
        return f"more than {domain} hosts must be a multiple of {domain}, the hosts of one NVLink domain"
    return None


def _hosts_per_domain(known: Chip) -> int:
    return known.fast_domain_chips // known.chips_per_host


@cache
def _chips() -> dict[str, Chip]:
    table = chip_data()
    return {name: _read_chip(name, row, table["sources"]) for name, row in table["chips"].items()}


def _read_chip(name: str, row: Mapping[str, Any], sources: Mapping[str, str]) -> Chip:
    cited = dict(row["numbers"]) | {f"peak_flops.{dtype}": cell for dtype, cell in row["peak_flops"].items()}
    return Chip(
        name=name,
        vendor_name=row["vendor_name"],
        platform=row["platform"],
        device_kind=row["device_kind"],
        same_peak_kinds=tuple(row.get("same_peak_kinds", ())),
        peak_flops={dtype: cell["value"] for dtype, cell in row["peak_flops"].items()},
        sources={key: sources[cell["source"]] for key, cell in cited.items()},
        note=row["note"],
        **{key: cell["value"] for key, cell in row["numbers"].items()},
    )


@cache
def chip_data() -> Any:
    """Return `chips.json`: `sources` by key, and for each of `chips` its figures with the keys of their sources."""
    return json.loads(resources.files("bigjax.run").joinpath("chips.json").read_text())
