"""Which links a collective crosses: the fast ones in a TPU slice or a GPU machine, or the slow ones between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bigjax.preflight.plan.traffic import Collective


@dataclass(frozen=True)
class Split:
    """How the group of a collective lies on the machine: members within one fast domain, and domains it spans."""

    within: int
    domains: int

    @property
    def link(self) -> str:
        """`ici` (fast), `dcn` (slow), or `ici+dcn`."""
        fast, slow = self.within > 1, self.domains > 1
        return "+".join([*["ici"] * (fast or not slow), *["dcn"] * slow])


def split(mesh_axes: Sequence[str], mesh_shape: Mapping[str, int], domain_devices: int) -> Split:
    """Return how the groups along `mesh_axes` lie on domains of `domain_devices` devices that are consecutive.

    Axes that are not in the mesh (a group that fits none) count as all axes.
    """
    names = list(mesh_shape)
    along = [names.index(axis) for axis in mesh_axes if axis in mesh_shape] or list(range(len(names)))
    devices = np.arange(np.prod(list(mesh_shape.values()))).reshape(list(mesh_shape.values()))
    others = [i for i in range(len(names)) if i not in along]
    groups = devices.transpose(*others, *along).reshape(-1, int(np.prod([devices.shape[i] for i in along])))
    domains = max(len(set(group)) for group in (groups // domain_devices).tolist())
    return Split(groups.shape[1] // domains, domains)


def bytes_by_link(
    collectives: Sequence[Collective], mesh_shape: Mapping[str, int], domain_devices: int
) -> dict[str, float]:
    """Return the bytes that a device sends in a step over fast (`ici`) and slow (`dcn`) links.

    A group that spans several domains works in two levels: a ring inside each domain, which leaves every member with
    its share of the array, then a ring of those shares between the domains.
    """
    total = {"ici": 0.0, "dcn": 0.0}
    for one in collectives:
        lies = split(one.mesh_axes, mesh_shape, domain_devices)
        members = lies.within * lies.domains
        whole = one.bytes_per_chip / _ring_share(members) if members > 1 else 0.0
        total["ici"] += whole * _ring_share(lies.within)
        total["dcn"] += whole / lies.within * _ring_share(lies.domains)
    return total


def _ring_share(members: int) -> float:
    return (members - 1) / members
