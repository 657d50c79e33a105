"""Training: one step, and what surrounds it.

`build(cfg)` returns a run as two functions, `init` and `step`.

Read `step` first, then `optimizers`. `divergence` detects a step gone wrong inside the program; `guard` decides what
follows, `rollback` goes back, `forensics` keeps the evidence. `flops` counts the work.
"""

from typing import TYPE_CHECKING

from bigjax import lazy

if TYPE_CHECKING:
    from bigjax.train.functions import TrainFunctions as TrainFunctions
    from bigjax.train.functions import build as build
    from bigjax.train.functions import loss as loss

__getattr__, __all__ = lazy.handing_on(__name__, {"bigjax.train.functions": ("TrainFunctions", "build", "loss")})
