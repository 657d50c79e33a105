"""Plans: what the compiled step of a config needs on given chips, and how long it may take.

Read `planner` first. `compiler` compiles in a child process (`compile_child`) for `devices`, `program` is what is
compiled, `hlo` reads what came out, `analytic` estimates without compiling. `roofline` and `links` bound the time;
`candidates`, `search` and `scaling` compare layouts; `report`, `page` and `search_table` show them.
"""
