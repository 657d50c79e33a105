"""A run and the machine it is on.

Read `folder` first: what a run leaves behind, and whose it is (`lock`, `lease`). `metrics`, `console`, `plots` and
`throughput` are what it says, `pending` when; `heartbeat`, `interrupt`, `processes` and `children` how its processes
live and end; `runtime` sets JAX up; `chips` are facts of the hardware; `json_files` writes files that are whole or not
there.
"""

from typing import TYPE_CHECKING

from bigjax import lazy

if TYPE_CHECKING:
    from bigjax.run.console import say as say
    from bigjax.run.folder import RunFolder as RunFolder
    from bigjax.run.interrupt import Interrupt as Interrupt
    from bigjax.run.metrics import MetricsWriter as MetricsWriter
    from bigjax.run.pending import Pending as Pending
    from bigjax.run.throughput import Profile as Profile
    from bigjax.run.throughput import Throughput as Throughput

# What reads a run folder alone needs no JAX.
__getattr__, __all__ = lazy.handing_on(
    __name__,
    {
        "bigjax.run.console": ("say",),
        "bigjax.run.folder": ("RunFolder",),
        "bigjax.run.interrupt": ("Interrupt",),
        "bigjax.run.metrics": ("MetricsWriter",),
        "bigjax.run.pending": ("Pending",),
        "bigjax.run.throughput": ("Profile", "Throughput"),
    },
)
