"""After runs: what they say, and how surely.

`laws` are scaling laws with their uncertainty (door: `scaling_laws`), `sweeps` the points of an experiment, `report`
the tables and the page of many runs. `variational` is what dropout says about weight decay.
"""
