"""One declaration per parameter: a tree of `ParamSpec`, and all that is derived from it.

A model's `specs(cfg)` is a nested dict of `ParamSpec`; parameters are a nested dict of arrays with the same keys.
A parameter's name is its path, e.g. `blocks/attn/q`.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

Kind = Literal["embedding", "head", "matrix", "norm", "bias"]
KINDS: tuple[str, ...] = get_args(Kind)

COPY_AXES = ("layers", "experts")
"""Logical axes that count copies of a parameter, before those of the parameter itself."""

Initializer = Callable[..., jax.Array]
"""`(key, shape, dtype) -> array`, as in `jax.nn.initializers`."""


class Growth(NamedTuple):
    """What a parameter has become since muP's base shape, as factors.

    Attributes:
      fan_in, fan_out: of its fans.
      layers: of the number of blocks that have one; 1 outside of blocks, and where depth is not scaled.
      residual: on what its block adds to the residual stream.
    """

    fan_in: float = 1.0
    fan_out: float = 1.0
    layers: float = 1.0
    residual: float = 1.0


@dataclass(frozen=True)
class ParamSpec:
    """A parameter: its shape, the logical name of each axis, what it is, and how it starts.

    A leading `layers` axis stacks the same parameter of every layer; `init` sees the shape without it.
    `contracts` names the axes that a matrix sums over when it is applied: their product is its fan-in. `float32`: it is
    used in float32 whatever the compute dtype. `growth`: since muP's base shape.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    kind: Kind
    init: Initializer
    contracts: tuple[str, ...] = ()
    float32: bool = False
    growth: Growth = field(default_factory=Growth)

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

    @property
    def copies(self) -> int:
        """How many leading axes count matrices of one shape: layers, and experts."""
        return next((i for i, axis in enumerate(self.axes) if axis not in COPY_AXES), len(self.axes))


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


def count(specs: Any, without: Iterable[str] = (), experts: int | None = None) -> int:
    """Return the number of parameters, leaving out those of the kinds in `without`.

    Of the experts in each layer only `experts` are counted, if given: the parameters active for a token.
    """
    excluded = set(without)

    def size(spec: ParamSpec) -> int:
        if experts is None or "experts" not in spec.axes:
            return spec.size
        return spec.size // spec.shape[spec.axes.index("experts")] * experts

    return sum(size(spec) for spec in jax.tree.leaves(specs) if spec.kind not in excluded)


def counts(specs: Any, experts: int) -> dict[str, int]:
    """Return the numbers by which a model is known: `params_total`, `params_non_embedding` (heads left out, too), and,
    if it is sparse, `params_active`, of which `experts` a layer are used for a token.
    """
    found = {"params_total": count(specs), "params_non_embedding": count(specs, ("embedding", "head"))}
    active = count(specs, experts=experts)
    return found | ({"params_active": active} if active != found["params_total"] else {})


def kind_mask(specs: Any, kinds: Iterable[str]) -> Any:
    """Return a tree of bools like `specs`: True where the parameter is of one of `kinds`."""
    chosen = set(kinds)
    return jax.tree.map(lambda spec: spec.kind in chosen, specs)


def cast(specs: Any, params: Any, dtype: Any) -> Any:
    """Return parameters in the dtype they are used in: `dtype`, but for those declared as `float32`."""
    return jax.tree.map(lambda spec, w: w if spec.float32 else w.astype(dtype), specs, params)


def unstack(blocks: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a tree of `(layers, ...)` arrays into one tree per layer.

    Call it outside the differentiated function: the backward pass of an index is a scatter-add into the whole stack.
    """
    return [layer(blocks, i) for i in range(num_layers(blocks))]


def stack(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Undo `unstack`: stack what the layers have under each name, those that have it."""
    present = dict.fromkeys(name for one in layers for name in one)
    return {
        name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one[name] for one in layers if name in one])
        for name in present
    }


def layer(blocks: dict[str, Any], index: int) -> dict[str, Any]:
    """Return what one layer of stacked blocks has.

    Where there are sparse layers (`moe`) beside dense ones (`mlp`), the last of each run of equal length is sparse, and
    each stack holds its own layers only.
    """
    at = dict.fromkeys(blocks, index)
    if "mlp" in blocks and "moe" in blocks:
        every = num_layers(blocks) // num_layers({"moe": blocks["moe"]})
        sparse = (index + 1) % every == 0
        del at["mlp" if sparse else "moe"]
        at["moe" if sparse else "mlp"] = index // every if sparse else index - index // every
    return {name: jax.tree.map(lambda stacked: stacked[i], blocks[name]) for name, i in at.items()}  # noqa: B023


def num_layers(blocks: dict[str, Any]) -> int:
    """Return how many layers are stacked."""
    return max(leaf.shape[0] for leaf in jax.tree.leaves(blocks))


def map_blocks(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function`, such as `unstack`, to every stack of layers of a model: all that is called `blocks`."""
    if not isinstance(tree, dict):
        return tree
    return {name: function(inner) if name == "blocks" else map_blocks(function, inner) for name, inner in tree.items()}
