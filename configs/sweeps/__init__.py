"""Sweeps by name: each file's `sweep(add)` adds the points of one question."""
