"""A law of one's own: `expression` reads its formula, `options` what is asked of its parameters, `fit` finds them.

`predict` evaluates any law with known parameters; `bigjax.science.scaling_laws` is the door.
"""
