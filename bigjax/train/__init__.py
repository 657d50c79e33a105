"""Training: one step, and what surrounds it.

Read `step` first, then `optimizers`. `divergence` detects a step gone wrong inside the program; `guard` decides what
follows, `rollback` goes back, `forensics` keeps the evidence. `flops` counts the work.
"""
