"""bigjax: scaling experiments in JAX whose answers can be trusted."""
