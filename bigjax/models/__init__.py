"""Model families: one file each, which declares its parameters, its functions and its own part of a config.

    model = build(cfg.model)
    params = model.init(jax.random.key(0))
    logits = model.apply(params, tokens)

Read `family` first, then `decoder`; `model` is what `build` returns, `parts` is what families are made of, `attention`
and `moe` are two rooms of their own.
"""

from typing import TYPE_CHECKING

from bigjax import lazy

if TYPE_CHECKING:
    from bigjax.models.model import Model as Model
    from bigjax.models.model import build as build

# A config is checked by the declaration of its family, which needs no JAX.
__getattr__, __all__ = lazy.handing_on(__name__, {"bigjax.models.model": ("Model", "build")})
