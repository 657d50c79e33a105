"""How memory, traffic and time per chip change with the number of chips."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from bigjax import config
from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.preflight.plan import devices
from bigjax.preflight.plan.page import gib
from bigjax.preflight.plan.planner import Planner
from bigjax.run.chips import PlanError, Topology

Row = dict[str, Any]


def of_size(topology: Topology, num_chips: int) -> Topology:
    """Return `num_chips` of the same chip, in as many slices as near to a square or cube as powers of two allow.

    Raises:
      PlanError: there are no such slices.
    """
    slices = topology.num_slices
    if num_chips % slices:
        raise PlanError(f"--sweep_chips={num_chips} is not a multiple of --num_slices={slices}")
    if topology.platform == "gpu":
        per_host = min(num_chips, topology.chip.chips_per_host)
        shape = (num_chips // per_host, per_host)
    else:
        dimensions, left = len(topology.shape), num_chips // slices
        sides = [1] * dimensions
        while left > 1:
            if left % 2:
                raise PlanError(f"--sweep_chips={num_chips}: a TPU slice has a power of two of chips")
            sides[sides.index(min(sides))] *= 2
            left //= 2
        shape = tuple(sorted(sides))
    if prod(shape) * slices != num_chips:
        raise PlanError(f"--sweep_chips={num_chips} is not a multiple of the {topology.chip.chips_per_host} a host has")
    return devices.parse(devices.name(replace(topology, shape=shape)), slices)


def sweep(cfg: Config, planner: Planner, counts: Sequence[int]) -> list[Row]:
    """Return a row for each number of chips, weak scaling first, then strong.

    Weak scaling keeps the rows of a chip as they are on `planner.topology`; strong scaling keeps the global batch. The
    mesh keeps its axes; the one that is -1 (else the larger of data and fsdp) takes the rest.

    Raises:
      UserError: a number of chips has no topology, or nothing fits.
    """
    base = planner.topology
    rows = []
    for kind in ("weak", "strong"):
        for chips in counts:
            topology = of_size(base, chips)
            batch_size = cfg.train.global_batch_size
            if kind == "weak":
                batch_size = batch_size * topology.num_devices // base.num_devices
            row: Row = {"scaling": kind, "chips": chips, "global_batch_size": batch_size, "problem": None}
            if not batch_size:
                rows.append(row | {"problem": "less than one row"})
                continue
            # What is planned for is the full batch, however it is reached.
            train = {"global_batch_size": batch_size, "ramp_batch_size": 0, "ramp_tokens": 0}
            sized = config.replace(_with_rest(cfg), train=train)
            try:
                found = replace(planner, topology=topology).plan(sized, quick=True)
            except UserError as error:
                rows.append(row | {"problem": str(error)})
                continue
            sent = {"ici": 0, "dcn": 0}
            for one in found["collectives"]:
                sent["dcn" if "dcn" in one["link"] else "ici"] += one["bytes_per_chip"]
            row |= {"fits": found["fits"], "hbm_bytes_per_chip_needed": found["hbm_bytes_per_chip_needed"]}
            row |= {f"{link}_bytes_per_chip": size for link, size in sent.items()}
            row |= {"step_seconds_estimate": found["step_seconds_estimate"]["mid"], "bound": found["bound"]}
            rows.append(row | {"tokens_per_s": found["tokens_per_s"], "source": found["source"]["memory"]})
    return rows


def _with_rest(cfg: Config) -> Config:
    if -1 in cfg.mesh.sizes.values():
        return cfg
    return config.replace(cfg, mesh={"fsdp" if cfg.mesh.sizes["fsdp"] >= cfg.mesh.data else "data": -1})


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    head = ("", "chips", "batch", "memory a chip", "sent a chip", "step s", "tokens/s")
    lines = ["{:<7}{:>6} {:>7} {:>14} {:>12} {:>9} {:>12}  bound".format(*head)]
    for row in rows:
        start = f"{row['scaling']:<7}{row['chips']:>6} {row['global_batch_size']:>7}"
        if row["problem"]:
            lines.append(f"{start}  {row['problem']}")
            continue
        memory = gib(row["hbm_bytes_per_chip_needed"]) + ("" if row["fits"] else "!")
        sent = gib(row["ici_bytes_per_chip"] + row["dcn_bytes_per_chip"])
        lines.append(
            f"{start} {memory:>14} {sent:>12} {row['step_seconds_estimate']:>9.4g} {row['tokens_per_s']:>12,.0f}  "
            f"{row['bound']} [{row['source']}]"
        )
    return "\n".join([*lines, "! does not fit"])


def draw(rows: Sequence[Row], title: str, path: str | Path) -> None:
    """Draw memory, bytes sent and step time per chip against the number of chips."""
    path = Path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    quantities = (
        ("memory needed (GiB a chip)", lambda row: row["hbm_bytes_per_chip_needed"] / 2**30),
        ("sent a step (GiB a chip)", lambda row: (row["ici_bytes_per_chip"] + row["dcn_bytes_per_chip"]) / 2**30),
        ("tokens a second and chip, estimated", lambda row: row["tokens_per_s"] / row["chips"]),
    )
    for panel, (label, value) in zip(panels, quantities, strict=True):
        for kind, marker in (("weak", "o-"), ("strong", "s--")):
            chosen = [row for row in rows if row["scaling"] == kind and not row["problem"]]
            panel.plot([row["chips"] for row in chosen], [value(row) for row in chosen], marker, label=kind)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_ylim(bottom=0)
        panel.set_xlabel("chips")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].legend(title="scaling")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
