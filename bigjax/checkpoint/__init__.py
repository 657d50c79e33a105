"""Checkpoints: state, data position and identity together. The only room that imports Orbax.

Read `saving` first. `reading` opens what is there, `digests` finds what was damaged since, `lenient` lets a run go on
when a save fails, `failures` says why it did.
"""

from typing import TYPE_CHECKING

from bigjax import lazy

if TYPE_CHECKING:
    from bigjax.checkpoint.lenient import LenientSaves as LenientSaves
    from bigjax.checkpoint.saving import Checkpoints as Checkpoints

# What looks for complete checkpoints alone needs no JAX.
__getattr__, __all__ = lazy.handing_on(
    __name__,
    {"bigjax.checkpoint.lenient": ("LenientSaves",), "bigjax.checkpoint.saving": ("Checkpoints",)},
)
