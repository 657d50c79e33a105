"""What the model families share: norms, activations, rotary positions, dropout, rematerialisation.

Legend: B batch, S sequence, D model, F mlp, H heads, K head dim, L layers.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal

from bigjax.config import ModelConfig, RopeConfig
from bigjax.config.model import is_on
from bigjax.models.parts import target
from bigjax.params import Initializer

Aux = dict[str, jax.Array]
"""What a model says of a batch besides its hidden states: name -> `(B, N, ...)`, a mean for each of N equal pieces of a
row, of a number or of an array of numbers.

`loss` is added to what training minimises, other names are metrics."""


def matrix_init(cfg: ModelConfig, fan_in: int, scale: float = 1.0) -> Initializer:
    """Start a matrix, or the rows of a table, as `cfg.init` says; `scale` is for `fan_in` only."""
    return normal(scale * fan_in**-0.5 if cfg.init == "fan_in" else cfg.init_std)


def residual_init(cfg: ModelConfig, fan_in: int) -> Initializer:
    """Start what writes to the residual stream smaller by sqrt(2 L) (Radford et al. 2019, section 2.3), but for T5.

    Where muP scales the depth, by that of its base shape: the rest is in the multiplier.
    """
    if cfg.init == "fan_in":
        return matrix_init(cfg, fan_in)
    return normal(cfg.init_std / (2 * (cfg.mup.base_num_layers or cfg.num_layers)) ** 0.5)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """Normalise the last axis to mean 0 and variance 1 in float32 (Ba et al. 2016), then scale and shift."""
    y = _normalise(x, scale, eps, True, False)
    return y if bias is None else y + bias


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, *, unit_offset: bool = False) -> jax.Array:
    """Divide the last axis by its root mean square in float32 (Zhang & Sennrich 2019), then scale.

    With `unit_offset` the factor is 1 + `scale`, and applied in float32 too, as in Gemma's released code.
    """
    return _normalise(x, scale, eps, False, unit_offset)


def _normalise_primal(x: jax.Array, scale: jax.Array, eps: float, centre: bool, unit_offset: bool) -> jax.Array:
    """Both norms, with a gradient of its own that keeps only x and one or two numbers a row."""
    return _normalise_forward(x, scale, eps, centre, unit_offset)[0]


def _normalise_forward(x, scale, eps: float, centre: bool, unit_offset: bool):
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True) if centre else jnp.zeros((), jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True) + eps)
    normal = (x32 - mean) * inverse
    y = (normal * (1 + scale.astype(jnp.float32))).astype(x.dtype) if unit_offset else normal.astype(x.dtype) * scale
    return y, (x, mean, inverse, scale)


def _normalise_backward(eps: float, centre: bool, unit_offset: bool, residuals, dy):
    del eps
    x, mean, inverse, scale = residuals
    normal = (x.astype(jnp.float32) - mean) * inverse
    dnormal = (dy * (1 + scale.astype(jnp.float32) if unit_offset else scale)).astype(jnp.float32)
    dx = dnormal - normal * jnp.mean(dnormal * normal, axis=-1, keepdims=True)
    if centre:
        dx -= jnp.mean(dnormal, axis=-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    return (dx * inverse).astype(x.dtype), jnp.sum(dy * normal, axis=rows).astype(scale.dtype)


_normalise: Any = jax.custom_vjp(_normalise_primal, nondiff_argnums=(2, 3, 4))
_normalise.defvjp(_normalise_forward, _normalise_backward)


GATED = ("swiglu", "geglu")
"""The activations that multiply with a second projection of the input (Shazeer 2020)."""

GRADIENTS_WRITTEN = ("TPU v5 lite", "TPU v6 lite")
"""Devices that write the gradients of a gated activation to memory before anything reads them.

Fused into the four products that read them, they are computed anew for every tile of the output. By the compiler's
estimate for a Llama 3.1 8B, writing them once takes 8 % of the cycles off on v5e and 3 % on v6e, and adds 0.5 % on v5p.
"""


def activation(name: str, hidden: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """Apply the non-linearity `name` to `(..., F)`; a gated one needs `gate` `(..., F)` too."""
    if gate is not None:
        return (_gated_once if target.device_kind() in GRADIENTS_WRITTEN else _gated)(name, hidden, gate)
    if name == "relu":
        return jax.nn.relu(hidden)
    if name == "relu_squared":  # So et al. 2021 (Primer), section 4
        return jnp.square(jax.nn.relu(hidden))
    return jax.nn.gelu(hidden, approximate=name == "gelu_tanh")  # Hendrycks & Gimpel 2016


def _gated(name: str, hidden: jax.Array, gate: jax.Array) -> jax.Array:
    return (jax.nn.silu(gate) if name == "swiglu" else jax.nn.gelu(gate, approximate=True)) * hidden


def _gated_forward(name: str, hidden: jax.Array, gate: jax.Array):
    return _gated(name, hidden, gate), (hidden, gate)


def _gated_backward(name: str, residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    _, pull = jax.vjp(partial(_gated, name), *residuals)
    return jax.lax.optimization_barrier(pull(dy))


_gated_once: Any = jax.custom_vjp(_gated, nondiff_argnums=(0,))
"""`_gated` with both gradients written to memory, the same numbers."""
_gated_once.defvjp(_gated_forward, _gated_backward)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Return `cap * tanh(x / cap)` (Gemma Team 2024, section 2), or `x` when there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rope_frequencies(cfg: RopeConfig, head_dim: int) -> tuple[np.ndarray, float]:
    """Return the angular frequency of each rotated pair `(K/2,)` and the factor on cos and sin.

    Plain: Su et al. 2021, section 3.2.2. `llama3`: Grattafiori et al. 2024, as published with the weights: wavelengths
    beyond `original_max_seq_len / low_freq_factor` are stretched by `factor`, those below
    `original_max_seq_len / high_freq_factor` kept, and those between interpolated.
    `yarn`: Peng et al. 2023, section 3.2, with the attention factor 0.1 ln(factor) + 1 of section 3.4.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequency = cfg.theta**-exponent
    if cfg.scaling == "none":
        return frequency.astype(np.float32), 1.0
    stretched = frequency / cfg.factor
    if cfg.scaling == "llama3":
        turns = cfg.original_max_seq_len * frequency / (2 * math.pi)
        keep = (turns - cfg.low_freq_factor) / (cfg.high_freq_factor - cfg.low_freq_factor)
        factor = 1.0
    else:
        low, high = (_pair_of_turns(turns, cfg, head_dim) for turns in (cfg.beta_fast, cfg.beta_slow))
        low, high = max(math.floor(low), 0), min(math.ceil(high), head_dim - 1)
        keep = 1 - (np.arange(head_dim // 2) - low) / max(high - low, 1e-3)
        factor = 0.1 * math.log(cfg.factor) + 1.0
    keep = np.clip(keep, 0, 1)
    return (keep * frequency + (1 - keep) * stretched).astype(np.float32), factor


def _pair_of_turns(turns: float, cfg: RopeConfig, head_dim: int) -> float:
    """Return the (real) index of the pair that makes `turns` full turns over the original length."""
    return head_dim * math.log(cfg.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(cfg.theta))


def rope_tables(positions: jax.Array, cfg: RopeConfig, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin `(..., S, 1, K/2)` in float32 for integer `positions` `(..., S)`."""
    frequency, factor = rope_frequencies(cfg, head_dim)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def apply_rope(x_BSHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate each head, pairing feature i with feature i + K/2 (the Llama layout)."""
    first, second = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BSHK.dtype)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Return `(..., S, D)` in float32 for integer positions `(..., S)` (Vaswani et al. 2017, section 3.5).

    Features 2i and 2i + 1 are the sine and cosine of position / 10000^(2i / D).
    """
    frequency = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angle = positions.astype(jnp.float32)[..., None] * frequency.astype(np.float32)
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return waves.reshape(*positions.shape, width)


def keep_mask(rate: float, key: jax.Array, rows_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return bools `(B, *shape)`, each False with probability `rate`, drawn as by `draw_rows`."""
    return draw_rows(lambda key, shape: jax.random.bernoulli(key, 1 - rate, shape), key, rows_B, shape)


def draw_rows(draw: Callable, key: jax.Array, rows_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return `draw(key, shape)` for each row, `(B, *shape)`.

    Row b depends on `key` and `rows_B[b]` only, so it is the same however the batch is split over devices and
    microbatches. Positions along the other axes always differ.
    """
    return jax.vmap(lambda row: draw(jax.random.fold_in(key, row), shape))(rows_B)


def dropout(
    x: jax.Array,
    rate: float,
    key: jax.Array | None,
    rows_B: jax.Array | None,
    *,
    same_along: tuple[int, ...] = (),
) -> jax.Array:
    """Zero entries with probability `rate` and scale the rest by 1 / (1 - rate); without a key return `x`.

    Along the axes in `same_along` all entries of a row share their fate.
    """
    if key is None or not is_on(rate):
        return x
    assert rows_B is not None
    shape = tuple(1 if axis in same_along else size for axis, size in enumerate(x.shape))
    keep = keep_mask(rate, key, rows_B, shape[1:])
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.empty:
        spec = (None if axis in same_along else entry for axis, entry in enumerate(sharding.spec))
        keep = jax.reshard(keep, jax.P(*spec))
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def rematerialised(block: Callable, remat: str, *, in_loop: bool) -> Callable:
    """Wrap one block so that its backward pass recomputes what `remat` does not save.

    `none`, and `auto` where no devices have resolved it, saves everything, `dots` the results of matrix products
    without batch axes, `full` nothing but the block's input; `save:NAMES` keeps, and `offload:NAMES` moves to host
    memory, the activations named with `checkpoint_name`.
    """
    policies: Any = jax.checkpoint_policies
    kind, _, listed = remat.partition(":")
    chosen = listed.split(",")
    if kind in ("none", "auto"):
        return block
    if kind == "full":
        policy = policies.nothing_saveable
    elif kind == "dots":
        policy = policies.dots_with_no_batch_dims_saveable
    elif kind == "save":
        policy = policies.save_only_these_names(*chosen)
    else:
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=chosen,
            offload_src="device",
            offload_dst="pinned_host",
        )
    # Inside a scan the loop itself keeps the two passes apart, so the costly barriers are not needed. Elsewhere the
    # compiler would merge what is computed twice, and keep it all.
    return jax.checkpoint(block, policy=policy, prevent_cse=not in_loop)
