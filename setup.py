"""Which packages are installed; all else stands in pyproject.toml.

`experiments` and `configs` lie at the top of a clone, where they are forked, and are installed inside `bigjax`.
"""

from setuptools import find_namespace_packages, setup


def packages(*names: str) -> set[str]:
    """Return these packages and all below them, with the folders that hold data only."""
    return set(find_namespace_packages(include=[*names, *(f"{name}.*" for name in names)], exclude=["*__pycache__*"]))


inside = {f"bigjax.{name}" for name in packages("configs", "experiments")}
setup(packages=sorted(packages("bigjax") | inside))
