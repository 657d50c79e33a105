"""Studies: one folder a question, from its sweeps to its figures."""
