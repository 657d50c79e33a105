"""Checkpoints: state, data position and identity together. The only room that imports Orbax.

Read `saving` first. `reading` opens what is there, `digests` finds what was damaged since, `lenient` lets a run go on
when a save fails, `failures` says why it did.
"""
