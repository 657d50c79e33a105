"""The launchers of sweeps: `python -m experiments.sweep`."""
