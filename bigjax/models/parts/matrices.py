"""Run an optax transformation on every layer's matrix by itself, seen as `(fan in, fan out)`.

Some rules are about matrices: Adafactor factors second moments into rows and columns and scales by the norm of one
parameter. Our parameters stack layers and keep heads apart, `(layers, embed, heads, head_dim)`.
"""

from math import prod
from typing import Any

import jax
import optax

from bigjax.params import ParamSpec


def axes_of(spec: ParamSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which axes form the rows (contracted) and the columns of a matrix; layers and experts count matrices."""
    inputs = tuple(i for i, axis in enumerate(spec.axes) if axis in spec.contracts)
    outputs = tuple(i for i in range(spec.copies, len(spec.axes)) if i not in inputs)
    return inputs, outputs


def is_spec(leaf: Any) -> bool:
    """Whether a node of a tree of specs is a leaf."""
    return isinstance(leaf, ParamSpec)


def per_matrix(tx: optax.GradientTransformation, specs: Any) -> optax.GradientTransformation:
    """Return `tx` as it acts on each parameter of each layer, matrices seen as two-dimensional.

    Its state is a tree like the parameters with one state of `tx` at each, stacked over the layers.
    """

    def init(params):
        def one(spec: ParamSpec, w: Any):
            return _beside(spec, w, _each_layer(spec, tx.init)(_fold(spec, w)))

        return jax.tree.map(one, specs, params, is_leaf=is_spec)

    def update(updates, state, params=None):
        def one(spec: ParamSpec, u: Any, s: Any, w: Any):
            u, s = _each_layer(spec, tx.update)(_fold(spec, u), s, _fold(spec, w))
            return _unfold(spec, u), s

        both = jax.tree.map(one, specs, updates, state, params, is_leaf=is_spec)
        return tuple(jax.tree.map(lambda _, pair: pair[i], specs, both, is_leaf=is_spec) for i in (0, 1))  # noqa: B023

    return optax.GradientTransformation(init, update)


def _beside(spec: ParamSpec, w: jax.Array, state: Any) -> Any:
    """Split the state of each layer and expert as these are split; what is counted from 0 starts whole."""
    sharding = jax.typeof(w).sharding
    if sharding.mesh.empty:
        return state
    lead = sharding.spec[: spec.copies]
    return jax.tree.map(lambda x: jax.reshard(x, jax.P(*lead, *jax.typeof(x).sharding.spec[spec.copies :])), state)


def _each_layer(spec: ParamSpec, function: Any) -> Any:
    for _ in range(spec.copies):
        function = jax.vmap(function)
    return function


def _order(spec: ParamSpec) -> tuple[int, ...]:
    inputs, outputs = axes_of(spec)
    return (*range(spec.copies), *inputs, *outputs)


def _fold(spec: ParamSpec, w: jax.Array) -> jax.Array:
    if spec.kind != "matrix":
        return w
    rows, columns = (prod(spec.shape[i] for i in axes) for axes in axes_of(spec))
    return w.transpose(_order(spec)).reshape(*spec.shape[: spec.copies], rows, columns)


def _unfold(spec: ParamSpec, u: jax.Array) -> jax.Array:
    if spec.kind != "matrix":
        return u
    order = _order(spec)
    return u.reshape([spec.shape[i] for i in order]).transpose(sorted(range(len(order)), key=order.__getitem__))
