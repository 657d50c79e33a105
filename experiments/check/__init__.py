"""Checks of what a run relies on: `python -m experiments.check`."""
