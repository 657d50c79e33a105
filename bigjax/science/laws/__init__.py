"""Scaling laws: fits with intervals, and how far to trust them. `bigjax.science.scaling_laws` is the door.

Read `points` first (a run as a point), `sources` reads them. `parametric` is L(N, D), `isoflop`, `envelope` and
`frontier` the compute-optimal frontier, `data_constrained` repeated data, `power_law` one variable, `downstream`
accuracies, `formula` a law of one's own, and predictions; `robust` is the optimiser and bootstrap below them all.
`checks` and `diagnostics` doubt a fit, `design` plans the next runs, `study` makes all that is asked for, and `report`
and `plots` show it.
"""
