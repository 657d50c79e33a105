"""bigjax: scaling experiments in JAX whose answers can be trusted."""

from bigjax import lazy

__getattr__, __all__ = lazy.handing_on(__name__, {"bigjax.version": ("__version__",)})
