"""One declaration per parameter: a tree of `ParamSpec`, and all that is derived from it.

A model's `specs(cfg)` is a nested dict of `ParamSpec`; parameters are a nested dict of arrays with the same keys.
A parameter's name is its path, e.g. `blocks/attn/q`.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

Kind = Literal["embedding", "head", "matrix", "norm", "bias"]
KINDS: tuple[str, ...] = get_args(Kind)

Initializer = Callable[..., jax.Array]
"""`(key, shape, dtype) -> array`, as in `jax.nn.initializers`."""


@dataclass(frozen=True)
class ParamSpec:
    """A parameter: its shape, the logical name of each axis, what it is, and how it starts.

    A leading `layers` axis stacks the same parameter of every layer; `init` sees the shape without it.
    `contracts` names the axes that a matrix sums over when it is applied: their product is its fan-in.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    kind: Kind
    init: Initializer
    contracts: tuple[str, ...] = ()

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")
        if (self.kind == "matrix") != bool(self.contracts) or not set(self.contracts) <= set(self.axes):
            raise ValueError(f"a {self.kind} with axes {self.axes} cannot contract {self.contracts}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def stacked(self) -> bool:
        """Whether the leading axis counts layers."""
        return self.axes[:1] == ("layers",)


def names(tree: Any) -> dict[str, Any]:
    """Flatten a nested dict into `{"outer/inner": leaf}`, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def init(specs: Any, key: jax.Array) -> Any:
    """Return float32 parameters for `specs`.

    Each parameter's key is `key` folded with a hash of its path, and each layer's is folded with its index, so adding
    a parameter or a layer never changes where the others start.
    """

    def one(path, spec: ParamSpec) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        if not spec.stacked:
            return spec.init(own, spec.shape, jnp.float32)
        layers = jnp.arange(spec.shape[0])
        return jax.vmap(lambda i: spec.init(jax.random.fold_in(own, i), spec.shape[1:], jnp.float32))(layers)

    return jax.tree_util.tree_map_with_path(one, specs)


def count(specs: Any, without: Iterable[str] = ()) -> int:
    """Return the number of parameters, leaving out those of the kinds in `without`."""
    excluded = set(without)
    return sum(spec.size for spec in jax.tree.leaves(specs) if spec.kind not in excluded)


def kind_mask(specs: Any, kinds: Iterable[str]) -> Any:
    """Return a tree of bools like `specs`: True where the parameter is of one of `kinds`."""
    chosen = set(kinds)
    return jax.tree.map(lambda spec: spec.kind in chosen, specs)


def unstack(blocks: Any) -> list[Any]:
    """Split a tree of `(layers, ...)` arrays into one tree per layer.

    Call it outside the differentiated function: the backward pass of an index is a scatter-add into the whole stack.
    """
    num_layers = jax.tree.leaves(blocks)[0].shape[0]
    return [jax.tree.map(lambda stacked: stacked[i], blocks) for i in range(num_layers)]  # noqa: B023


def stack(layers: list[Any]) -> Any:
    """Undo `unstack`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def map_blocks(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function`, such as `unstack`, to every stack of layers of a model: all that is called `blocks`."""
    if not isinstance(tree, dict):
        return tree
    return {name: function(inner) if name == "blocks" else map_blocks(function, inner) for name, inner in tree.items()}
