"""The products of the matrices of blocks with activations, by the recipe of the model (`config.recipes`).

In low precision both operands are divided by scales so that their largest entry is the largest of the format, rounded
to it, multiplied, and the result is scaled back: for w one scale for every column, for x one for every row, each over
all that the product sums (Wortsman et al. 2023, section 2.2, with vector-wise scales for both). Scales are of the
current values: nothing is carried from step to step, and microbatches do not see each other's. Where devices split what
a product sums, the largest is that of all devices, so scales are the same on every mesh, and each device scales its own
summand back before the sum: what is sent is in the compute dtype, as without a recipe.

Legend: B batch, S sequence, D model, F mlp, R groups, E experts, C capacity, Q tokens in the order of their experts, X
and Y the two sides of an expert's matrix.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from bigjax.config import ModelConfig
from bigjax.config.recipes import RECIPES, WHOLE, Formats, Recipe
from bigjax.errors import UserError
from bigjax.models.parts.layers import MATMUL
from bigjax.sharding import axes_of_entry

CALIBRATION = {"int8": f"absmax,{127.5 / 127}"}
"""Of the largest of some numbers, what their scale is of, as `qwix` says it, for formats where that is not 1.

`qwix` divides by 127.5: the largest would be on the edge between two integers, and rounding alone would choose one.
"""


def matrix(equation: str, x: jax.Array, w: jax.Array, cfg: ModelConfig, out: P | None) -> jax.Array:
    """Return the product of activations with a matrix, as `einsum(equation, x, w, out_sharding=out)`, by `cfg.matmul`.

    Every operand has its axes in the order of `equation`, and so does the result.

    Raises:
      UserError: the recipe needs `qwix`, which is not installed.
    """
    if cfg.matmul == "default":
        return jnp.einsum(equation, x, w, out_sharding=out)
    return checkpoint_name(_low_precision(equation, RECIPES[cfg.matmul], out, Split(), x, w), MATMUL)


class Split(NamedTuple):
    """The mesh axes, in a `shard_map`, that split what a product sums, the columns of the matrix, and the tokens."""

    summed: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


def of_experts(x_RECX: jax.Array, w_EXY: jax.Array, cfg: ModelConfig, split: Split) -> jax.Array:
    """Return each expert's product with its tokens, `(R, E, C, Y)`, on one device inside a `shard_map`."""
    if cfg.matmul == "default":
        return jnp.einsum("RECX,EXY->RECY", x_RECX, w_EXY)
    w_EXY = _shared(w_EXY, split)
    y_RECY = _low_precision("RECX,EXY->RECY", RECIPES[cfg.matmul], None, split, x_RECX, w_EXY)
    return checkpoint_name(y_RECY, MATMUL)


def grouped(x_QX: jax.Array, w_EXY: jax.Array, cfg: ModelConfig, split: Split, sizes_E: jax.Array) -> jax.Array:
    """Return the product of each token with its expert's matrix, `(Q, Y)`, as `jax.lax.ragged_dot`, in a `shard_map`.

    The gradient of the matrices is in the compute dtype by every recipe.
    """
    if cfg.matmul == "default":
        return jax.lax.ragged_dot(x_QX, w_EXY, sizes_E)
    return checkpoint_name(_grouped(RECIPES[cfg.matmul], split, x_QX, _shared(w_EXY, split), sizes_E), MATMUL)


def _shared(w: jax.Array, split: Split) -> jax.Array:
    """Return a matrix as it differs between devices; JAX then sums its gradient over those that share it."""
    return jax.lax.pcast(w, split.rows, to="varying") if split.rows else w


def _low_precision_primal(equation: str, recipe: Recipe, out: P | None, split: Split, x, w) -> jax.Array:
    return _product(equation, x, w, recipe.forward, out, split.summed)


def _low_precision_forward(equation: str, recipe: Recipe, out: P | None, split: Split, x, w):
    return _low_precision(equation, recipe, out, split, x, w), (x, w)


def _low_precision_backward(equation: str, recipe: Recipe, out: P | None, split: Split, residuals, g):
    x, w = residuals
    (of_x, of_w), of_y = equation.partition("->")[0].split(","), equation.partition("->")[2]
    _, pull = jax.vjp(lambda x, w: jnp.einsum(equation, x, w, out_sharding=out), x, w)
    dx, dw = pull(g)
    natural = _natural(equation, x, w)
    g = _moved(g, None if natural is None else P(*natural.partitions))
    if recipe.input_gradient:
        dx = _product(f"{of_y},{of_w}->{of_x}", g, w, recipe.input_gradient, _stored(x), split.columns)
    if recipe.weight_gradient:
        dw = _product(f"{of_x},{of_y}->{of_w}", x, g, recipe.weight_gradient, _stored(w, "unreduced"), split.rows)
    return dx, dw


_low_precision: Any = jax.custom_vjp(_low_precision_primal, nondiff_argnums=(0, 1, 2, 3))
_low_precision.defvjp(_low_precision_forward, _low_precision_backward)


def _grouped_primal(recipe: Recipe, split: Split, x_QX, w_EXY, sizes_E) -> jax.Array:
    return _grouped_product(x_QX, w_EXY, sizes_E, recipe.forward, split.summed)


def _grouped_forward(recipe: Recipe, split: Split, x_QX, w_EXY, sizes_E):
    return _grouped(recipe, split, x_QX, w_EXY, sizes_E), (x_QX, w_EXY, sizes_E)


def _grouped_backward(recipe: Recipe, split: Split, residuals, g_QY):
    x_QX, w_EXY, sizes_E = residuals
    _, pull = jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, sizes_E), x_QX, w_EXY)
    dx, dw = pull(g_QY)
    if recipe.input_gradient:
        w_EYX = jnp.swapaxes(w_EXY, 1, 2)
        dx = _grouped_product(g_QY, w_EYX, sizes_E, recipe.input_gradient, split.columns)
    return dx, dw, None


_grouped: Any = jax.custom_vjp(_grouped_primal, nondiff_argnums=(0, 1))
_grouped.defvjp(_grouped_forward, _grouped_backward)


def _grouped_product(x_QX, w_EXY, sizes_E, formats: Formats, summed: tuple[str, ...]) -> jax.Array:
    if formats is None:
        return jax.lax.ragged_dot(x_QX, w_EXY, sizes_E)
    x, w = _quantised(x_QX, (1,), formats[0], summed), _quantised(w_EXY, (1,), formats[1], summed)
    y_QY = jax.lax.ragged_dot(x.values, w.values, sizes_E, preferred_element_type=_sums(formats))
    expert_Q = jnp.minimum(jnp.searchsorted(jnp.cumsum(sizes_E), jnp.arange(len(x_QX)), side="right"), len(sizes_E) - 1)
    return (y_QY.astype(jnp.float32) * x.scale * w.scale[:, 0][expert_Q]).astype(x_QX.dtype)


def _product(equation: str, a, b, formats: Formats, out: P | None, summed: tuple[str, ...]) -> jax.Array:
    """Return one of the three products; `summed` are the mesh axes, in a `shard_map`, that split what it sums."""
    if formats is None:
        return jnp.einsum(equation, a, b, out_sharding=out)
    (of_a, of_b), of_y = equation.partition("->")[0].split(","), equation.partition("->")[2]
    sides = []
    for operand, axes, its_format in ((a, of_a, formats[0]), (b, of_b, formats[1])):
        contracted = tuple(i for i, axis in enumerate(axes) if axis not in of_y)
        sides.append((_quantised(_moved(operand, _stored(operand)), contracted, its_format, summed), axes))
    natural = _natural(equation, a, b)
    (x, _), (w, _) = sides
    y = jnp.einsum(equation, x.values, w.values, out_sharding=natural, preferred_element_type=_sums(formats))
    y = y.astype(jnp.float32)
    for side, axes in sides:
        y = y * _aligned(side.scale, axes, of_y, natural)
    return _moved(y.astype(a.dtype), out)


def _sums(formats: tuple[str, str]) -> Any:
    return jnp.int32 if formats == ("int8", "int8") else jnp.float32


class _Quantised(NamedTuple):
    values: jax.Array
    scale: jax.Array


def _quantised(x: jax.Array, contracted: tuple[int, ...], to: str, summed: tuple[str, ...]) -> _Quantised:
    """Return values in a format and their scales, of which there is one for all that is contracted."""
    core, kept = _core(), tuple(i for i in range(x.ndim) if i not in contracted)
    x = x.astype(jnp.float32)
    largest = core.calibrate(
        x, core.HowToQuantize(qtype=to, channelwise_axes=kept, calibration_method=CALIBRATION.get(to, "absmax"))
    )
    if summed:
        largest = {name: jax.lax.pmax(value, summed) for name, value in largest.items()}
    if to == WHOLE[0]:
        scale = jnp.where(largest["absmax"] > 0, largest["absmax"], 1.0)
        return _Quantised(x / scale, scale)
    scale, _ = core.compute_scale_zero_point(largest, jnp.dtype(to))
    found = core.quantize_with_scale_zero_point(x, jnp.dtype(to), scale, None)
    return _Quantised(found.qvalue, found.scale)


def _aligned(scale: jax.Array, axes: str, of_y: str, natural: P | None) -> jax.Array:
    """Return scales with the axes of the result; those that it sums have gone."""
    scale = jnp.squeeze(scale, tuple(i for i, axis in enumerate(axes) if axis not in of_y))
    scale = jnp.expand_dims(scale, tuple(i for i, axis in enumerate(of_y) if axis not in axes))
    if natural is None or not natural.unreduced:
        return scale
    # JAX multiplies the summands of a sum to come with what it knows to be the same on their devices.
    return jax.reshard(scale, jax.typeof(scale).sharding.spec.update(reduced=natural.unreduced))


def _explicit(x: jax.Array) -> bool:
    mesh = jax.typeof(x).sharding.mesh
    return not mesh.empty and bool(mesh.explicit_axes)


def _stored(x: jax.Array, rest: str = "") -> P | None:
    """Return where an array lies, or with `rest` "unreduced" where its gradient does; None outside an explicit mesh."""
    if not _explicit(x):
        return None
    spec = jax.typeof(x).sharding.spec
    return P(*spec.partitions, unreduced=spec.reduced if rest else frozenset())


def _natural(equation: str, a: jax.Array, b: jax.Array) -> P | None:
    """Return where a product lies before anything moves: each axis where it was, summands where they were made."""
    if not _explicit(a):
        return None
    (of_a, of_b), of_y = equation.partition("->")[0].split(","), equation.partition("->")[2]
    where: dict[str, Any] = {}
    for operand, axes in ((b, of_b), (a, of_a)):
        where |= {axis: at for axis, at in zip(axes, jax.typeof(operand).sharding.spec.partitions, strict=True) if at}
    summed = {m for axis, at in where.items() if axis not in of_y for m in axes_of_entry(at)}
    return P(*(where.get(axis) for axis in of_y), unreduced=frozenset(summed))


def _moved(x: jax.Array, to: P | None) -> jax.Array:
    return x if to is None or jax.typeof(x).sharding.spec == to else jax.reshard(x, to)


@cache
def _core() -> Any:
    """Return `qwix`'s functions on arrays.

    Raises:
      UserError: it is not installed.
    """
    if find_spec("qwix") is None:
        raise UserError("model.matmul needs qwix: pip install 'bigjax[quant]', or set model.matmul='default'")
    from qwix._src.core import qarray

    return qarray
