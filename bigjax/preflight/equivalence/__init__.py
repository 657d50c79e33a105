"""One step on a mesh against the same step on one device, or against transformers (`against_hf`).

Read `compare` first; `observation` is what is compared, `bounds` how far rounding may take it, `meshes` where.
"""
