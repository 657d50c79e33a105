"""A command on data of which some batches are bad, whatever run draws them:

    python -m tests.poisoned NUMBER=KIND[,NUMBER=KIND...] MODULE ARGUMENTS

KIND is `nan` (the weights of the batch's tokens are not numbers) or `noise` (its targets are a byte that no text has).
"""

import dataclasses
import runpy
import sys

import numpy as np


def main() -> None:
    kinds = {int(number): kind for number, kind in (one.split("=") for one in sys.argv[1].split(","))}
    from bigjax.data import TrainStream

    batch_of = TrainStream.batch

    def batch(self, step):
        found, kind = batch_of(self, step), kinds.get(self.number(step))
        if kind == "nan":
            bad = {"weights": np.full_like(found.arrays["weights"], np.nan)}
        elif kind == "noise":
            bad = {"targets": np.full_like(found.arrays["targets"], 255)}
        else:
            return found
        return dataclasses.replace(found, arrays=found.arrays | bad)

    TrainStream.batch = batch
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
