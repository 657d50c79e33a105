"""Before a launch: does it fit, is it the same on every mesh, does it resume, is its width well set?

`plan` compiles the real step for chips that need not be there; `equivalence` compares meshes with one device, or with
transformers; `resume` kills a small run and goes on; `widths` is muP's coordinate check; `shrink` makes a config small.
"""
