"""A run and the machine it is on.

Read `folder` first: what a run leaves behind, and whose it is (`lock`, `lease`). `metrics`, `console`, `plots` and
`throughput` are what it says; `heartbeat`, `interrupt`, `processes` and `children` how its processes live and end;
`runtime` sets JAX up; `chips` are facts of the hardware; `json_files` writes files that are whole or not there.
"""
