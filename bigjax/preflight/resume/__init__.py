"""A small run is killed and resumed, and compared with one that was not.

Read `trial` first; `witness` records a run, `compare` says where two differ, `excerpt` makes epochs short.
"""
