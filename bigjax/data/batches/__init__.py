"""Batches: which rows, in which order, at which step.

Read `order` first: the k-th row of a run is a pure function of the seed and k. `lanes` is the contiguous order of
recurrent models, `ramp` a batch that grows. `stream` makes the training batches, `evalset` those that are held out.
"""
