"""Maximal update parametrization (muP): how initial values, learning rates and multipliers change with width.

Rules are those of Tensor Programs V (Yang et al. 2022), table 8 for what meets the finite vocabulary and for hidden
matrices (its output multiplier lets a tied table serve both ends), and table 3, which has no multiplier, for routers.
All are relative to a base shape, at which every rule is 1. `width` is d_model over that of the base; the width of the
MLPs and that of all heads together are taken to grow in proportion.
"""

import dataclasses
from typing import Any

import jax

from bigjax.config import ModelConfig
from bigjax.params import Initializer, ParamSpec

FINITE_AXES = ("gates",)
"""Logical axes of a matrix's output that do not grow with width: such a matrix is an output weight."""


def width(cfg: ModelConfig) -> float:
    """Return d_model over that of the base shape; 1 under the standard parametrization."""
    return cfg.d_model / cfg.mup_base_d_model if cfg.parametrization == "mup" else 1.0


def attention_scale(cfg: ModelConfig) -> float | None:
    """Return the factor on scores: 1/d relative to the base head (Yang et al. 2022, definition 4.1), or that of `cfg`.

    None is head_dim ** -0.5, which is also that of a base head.
    """
    if cfg.parametrization == "standard" or cfg.mup_base_head_dim in (0, cfg.head_dim):
        return cfg.attn_scale
    return cfg.mup_base_head_dim**0.5 / cfg.head_dim


def is_output(spec: ParamSpec) -> bool:
    """Whether a matrix maps width to something that does not grow with it."""
    return spec.kind == "matrix" and bool(set(spec.axes) & set(FINITE_AXES))


def init_scale(spec: ParamSpec, ratio: float) -> float:
    """Return the factor on initial values at `ratio` times the base width.

    Variances: inputs and outputs 1, hidden matrices 1/fan_in (table 8), routers 1/fan_in^2 (table 3).
    """
    if is_output(spec):
        return 1 / ratio
    return ratio**-0.5 if spec.kind == "matrix" else 1.0


def learning_rate(spec: ParamSpec, optimizer: str) -> float:
    """Return the factor on the learning rate of a parameter at `spec.width` times the base width.

    SGD: inputs, outputs, norms and biases fan_out or fan_in, hidden 1, routers 1/fan_in. Adam: matrices 1/fan_in,
    others 1 (tables 8 and 3). Muon: matrices by the spectral condition sqrt(fan_out / fan_in) (Yang et al. 2023,
    condition 1), which its scaling by shape keeps for hidden ones; the rest is Adam's.

    Raises:
      KeyError: there is no rule for the optimizer.
    """
    powers = {  # of the width, for hidden matrices, routers and all others
        "sgd": (0.0, -1.0, 1.0),
        "adam": (-1.0, -1.0, 0.0),
        "adamw": (-1.0, -1.0, 0.0),
        "muon": (0.0, -0.5, 0.0),
    }
    hidden, output, other = powers[optimizer]
    power = other if spec.kind != "matrix" else output if is_output(spec) else hidden
    return spec.width**power


def parametrized(specs: Any, cfg: ModelConfig) -> Any:
    """Return the specs of a model with the initial values and the width of its parametrization."""
    if cfg.parametrization == "standard":
        return specs
    ratio = width(cfg)

    def one(spec: ParamSpec) -> ParamSpec:
        return dataclasses.replace(spec, init=_scaled(spec.init, init_scale(spec, ratio)), width=ratio)

    return jax.tree.map(one, specs)


def _scaled(init: Initializer, scale: float) -> Initializer:
    return init if scale == 1 else lambda key, shape, dtype: scale * init(key, shape, dtype)
