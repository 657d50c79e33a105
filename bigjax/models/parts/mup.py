"""Maximal update parametrization (muP): how initial values, learning rates and multipliers change with width and depth.

Each matrix starts and learns by how its own fan-in and fan-out have grown since a base shape, at which every rule is 1:
the spectral condition (Yang, Simon & Bernstein 2023, condition 1 and section 4), which gives the rules of Tensor
Programs V (Yang et al. 2022), table 3. What meets the finite vocabulary, and classes, has those of its table 8 instead:
an output multiplier lets a tied table serve both ends.

With depth, blocks add `m ** -alpha` of what they did to the residual stream, where m is how many times as many there
are: depth-muP at alpha 1/2 (Yang et al. 2023, Tensor Programs VI), CompleteP at 1 (Dey et al. 2025, table 1).
"""

import dataclasses
from math import log, prod
from typing import Any

import jax

from bigjax.config import ModelConfig
from bigjax.config import mup as config_mup
from bigjax.models.parts.matrices import axes_of
from bigjax.params import Growth, Initializer, ParamSpec


def width(cfg: ModelConfig) -> float:
    """Return d_model over that of the base shape; 1 under the standard parametrization."""
    return cfg.d_model / cfg.mup.base_d_model if cfg.parametrization == "mup" else 1.0


def depth(cfg: ModelConfig) -> float:
    """Return the number of layers over that of the base shape; 1 where depth is not scaled."""
    return cfg.num_layers / cfg.mup.base_num_layers if cfg.mup.base_num_layers else 1.0


def residual_scale(cfg: ModelConfig) -> float:
    """Return the factor on what each half of a block adds to the residual stream (Dey et al. 2025, equation 1)."""
    return depth(cfg) ** -cfg.mup.depth_alpha


def attention_scale(cfg: ModelConfig) -> float | None:
    """Return the factor on scores: 1/d relative to the base head (Yang et al. 2022, definition 4.1), or that of `cfg`.

    None is head_dim ** -0.5, which is also that of a base head.
    """
    if cfg.parametrization == "standard" or cfg.mup.base_head_dim in (0, cfg.head_dim):
        return cfg.attn_scale
    return cfg.mup.base_head_dim**0.5 / cfg.head_dim


def base_shape(cfg: ModelConfig) -> ModelConfig:
    """Return the model of the base shape, as deep as `cfg`, by the standard parametrization."""
    sizes = {name: int(size) for name, size in config_mup.base_sizes(cfg).items()}
    moe = dataclasses.replace(cfg.moe, d_ff=sizes.pop("moe.d_ff", cfg.moe.d_ff))
    unset = config_mup.MupConfig(depth_alpha=cfg.mup.depth_alpha)
    return dataclasses.replace(cfg, parametrization="standard", moe=moe, mup=unset, **sizes)


def growth(spec: ParamSpec, base: ParamSpec, cfg: ModelConfig) -> Growth:
    """Return how a parameter has grown since `base`, the same one in the base shape.

    Tables, norms and biases have a finite fan-in, heads a finite fan-out.
    """
    deep = (depth(cfg), residual_scale(cfg)) if spec.stacked else ()
    if spec.kind == "head":
        return Growth(spec.size / base.size, 1.0, *deep)
    if spec.kind != "matrix":
        return Growth(1.0, spec.size / base.size, *deep)
    fans, base_fans = _fans(spec), _fans(base)
    return Growth(fans[0] / base_fans[0], fans[1] / base_fans[1], *deep)


def _fans(spec: ParamSpec) -> tuple[float, float]:
    fan_in, fan_out = (prod(spec.shape[i] for i in axes) for axes in axes_of(spec))
    return fan_in, fan_out


def init_scale(spec: ParamSpec) -> float:
    """Return the factor on initial values at `spec.growth`.

    Variances are 1/fan_in, and 1/fan_in^2 where the fan-out grows less, as of routers: there the factor is
    sqrt(fan_out) / fan_in. Tables, which have a finite fan-in, and heads, which the multiplier serves, keep theirs.
    """
    fan_in, fan_out, *_ = spec.growth
    if spec.kind == "head":
        return 1.0
    return fan_out**0.5 / fan_in if abs(log(fan_out)) < abs(log(fan_in)) else fan_in**-0.5


def learning_rate(spec: ParamSpec, optimizer: str) -> float:
    """Return the factor on the learning rate of a parameter at `spec.growth`.

    SGD: fan_out / fan_in. Adam: 1 / fan_in. Muon: matrices sqrt(fan_out / fan_in), in which its own scaling by shape
    has a part; the rest is Adam's. Heads, whose multiplier divides by their fan-in: fan_in by SGD, 1 by Adam.

    All blocks together change the residual stream as those of the base do: each learns by 1 / (layers * residual), and
    by SGD, whose gradients have shrunk by `residual`, by as much more.

    Raises:
      KeyError: there is no rule for the optimizer.
    """
    fan_in, fan_out, layers, residual = spec.growth
    deep = 1 / (layers * residual)
    if spec.kind == "head":
        return {"sgd": fan_in, "adam": 1.0, "adamw": 1.0, "muon": 1.0}[optimizer]
    adam = deep / fan_in
    muon = deep * _muon_learning_rate(spec) if spec.kind == "matrix" else adam
    return {"sgd": deep / residual * fan_out / fan_in, "adam": adam, "adamw": adam, "muon": muon}[optimizer]


def gradient_scale(spec: ParamSpec) -> float:
    """Return what gradients at `spec.growth` lack to the size of those of the base shape.

    Adam divides it out, but for its epsilon, which this keeps in proportion (Dey et al. 2025, table 1, last rows). A
    gradient is what makes the rules of SGD and Adam one: its size is the ratio of their learning rates.
    """
    return learning_rate(spec, "sgd") / learning_rate(spec, "adam")


def _muon_learning_rate(spec: ParamSpec) -> float:
    """Return what an update of norm sqrt(max(1, fan_out / fan_in)) lacks to that of the base times the condition's."""
    fan_in, fan_out, *_ = spec.growth
    rows, columns = _fans(spec)
    before = max(1.0, (columns / fan_out) / (rows / fan_in))
    return (fan_out / fan_in * before / max(1.0, columns / rows)) ** 0.5


def parametrized(specs: Any, base: Any, cfg: ModelConfig) -> Any:
    """Return the specs of a model with the initial values and the growth since `base`, the specs of the base shape."""

    def one(spec: ParamSpec, base: ParamSpec) -> ParamSpec:
        grown = dataclasses.replace(spec, growth=growth(spec, base, cfg))
        return dataclasses.replace(grown, init=_scaled(spec.init, init_scale(grown)))

    return jax.tree.map(one, specs, base)


def _scaled(init: Initializer, scale: float) -> Initializer:
    return init if scale == 1 else lambda key, shape, dtype: scale * init(key, shape, dtype)
