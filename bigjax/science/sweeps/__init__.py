"""Sweeps: from one config to the points of an experiment, each with an identity.

    from bigjax.science.sweeps import grid, seeds
    def sweep(add):                                     # in a config file
        add(grid({"optim.lr": [1e-3, 3e-3]}), seeds(3))

Read `points` first; `factors` combines values, `folder` is where the points of a sweep lie, `stacked` trains several
points as one program.
"""

from bigjax.science.sweeps.factors import (
    Change,
    Choice,
    Distribution,
    Factor,
    SweepError,
    Uniform,
    ablation,
    branches,
    choice,
    grid,
    log_uniform,
    random,
    seeds,
    uniform,
    zip_,
)
from bigjax.science.sweeps.points import (
    SCALARS,
    Adder,
    Point,
    collect,
    explain,
    point_of,
    resolve,
    without_scalars,
)

__all__ = [
    "SCALARS",
    "Adder",
    "Change",
    "Choice",
    "Distribution",
    "Factor",
    "Point",
    "SweepError",
    "Uniform",
    "ablation",
    "branches",
    "choice",
    "collect",
    "explain",
    "grid",
    "log_uniform",
    "point_of",
    "random",
    "resolve",
    "seeds",
    "uniform",
    "without_scalars",
    "zip_",
]
