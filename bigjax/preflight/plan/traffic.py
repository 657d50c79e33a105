"""What the chips of a mesh send each other in one step: the collectives, and the bytes a ring moves for each."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Collective:
    """One kind of collective over one set of mesh axes, summed over a step.

    Attributes:
      mesh_axes: the axes along which the members of a group differ, in mesh order; `("?",)` if the groups fit none.
      count: executions in one step, those in loops counted as often as the loop runs.
      bytes_per_chip: bytes that each device sends in one step, by `sent_bytes`.
      overlapped_bytes_per_chip: the part that the program starts early and awaits later, with work in between.
    """

    kind: Kind
    mesh_axes: tuple[str, ...]
    count: int
    bytes_per_chip: int
    overlapped_bytes_per_chip: int = 0


def sent_bytes(kind: Kind, whole_bytes: int, group_size: int) -> float:
    """Return the bytes that each of `group_size` devices sends for one collective on a ring.

    `whole_bytes` is the size of the array in one piece: the result of an all-gather, the operand of the others. The
    bandwidth-optimal ring (Patarasuk & Yuan 2009) moves `(n - 1) / n` of it for an all-gather, a reduce-scatter or an
    all-to-all, and twice that for an all-reduce, which is both; a permute sends its operand once.
    """
    share = (group_size - 1) / group_size
    return whole_bytes * {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)
