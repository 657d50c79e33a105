"""Optax chains and learning-rate schedules from the configuration."""

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from bigjax.config import ConfigError, OptimConfig, named
from bigjax.config.lengths import DECAYING, lengths, too_long
from bigjax.data.batches.ramp import BatchRamp
from bigjax.models.parts import mup
from bigjax.models.parts.matrices import axes_of, is_spec, per_matrix
from bigjax.params import Growth, ParamSpec, kind_mask
from bigjax.train import moments

BLOCK = 4096
"""How many learning rates `looked_up` computes at a time."""

DECAYED_KINDS = ("embedding", "head", "matrix")
"""Weight decay spares norms and biases (Brown et al. 2020 follow Loshchilov & Hutter 2019; the custom since GPT-2)."""


def schedule(cfg: OptimConfig, steps: int, ramp: BatchRamp | None = None) -> Callable[[Any], Any]:
    """Return the learning rate as a function of the number of updates made, 0 for the first.

    Where the batch grows, by `ramp`, it is a function of the rows seen: below, all is counted in full batches.

    After a linear warm-up that reaches `lr` at its last update (`optim.warmup`, in steps by `bigjax.config.lengths`):
      constant; linear or cosine (Loshchilov & Hutter 2017) from the next update to `end_lr_ratio * lr` at the run's
        last, or `optim.decay` later;
      wsd: constant, then linear to `end_lr_ratio * lr` over the last `optim.decay` (Hu et al. 2024, section 4; Hägele
        et al. 2024), but never before the first update after the warm-up;
      inverse_sqrt: `lr * sqrt(warmup / t)` (Vaswani et al. 2017, equation 3, in terms of its peak).

    Raises:
      ConfigError: the rows of a run whose batch grows make fewer full batches than warm-up and decay take.
    """
    if ramp is not None and len(ramp.sizes) > 1:
        by_rows = _in_full_batches(ramp)
        full_batches = ramp.full_batches(steps)
        for problem in too_long(cfg, full_batches, f"a run of {full_batches} full batches"):
            raise ConfigError(problem)
        full = _of_full_batches(cfg, full_batches - 1)
        return lambda t: full(by_rows(t))
    return _of_full_batches(cfg, steps - 1)


def rates(schedule: Callable[[Any], Any], updates: Any) -> np.ndarray:
    """Return the learning rates of many updates, float32 of the shape of their numbers, `(N,)`."""
    return np.asarray(jax.vmap(schedule)(updates), np.float32)


def looked_up(schedule: Callable[[Any], Any]) -> Callable[[int], float]:
    """Return a schedule for the loop on the host, which computes the rates of many updates at a time.

    Computed one by one, each would wait on a device behind the step that runs there.
    """

    @cache
    def block(number: int) -> np.ndarray:
        return rates(schedule, np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int32))

    return lambda update: float(block(update // BLOCK)[update % BLOCK])


def _in_full_batches(ramp: BatchRamp) -> Callable[[Any], Any]:
    """Return the function from a number of batches to that of full ones with as many rows, float32."""

    def convert(batches: Any) -> Any:
        steps, rows, sizes = (jnp.array(values, jnp.int32) for values in (ramp.steps, ramp.rows, ramp.sizes))
        stage = jnp.searchsorted(steps, batches, side="right") - 1
        return (rows[stage] + (batches - steps[stage]) * sizes[stage]) / ramp.sizes[-1]

    return convert


def _of_full_batches(cfg: OptimConfig, last: int) -> Callable[[Any], Any]:
    """Return the learning rate as a function of full batches seen, `last` of them before the last update.

    Every part is a quotient of what has passed, or is still to come, so that nothing cancels where it is small. A
    constant is selected, too, not given to the compiler, which would fold it into other factors: the steady part of
    one schedule is then that of another, bit for bit.
    """
    lr, end = cfg.lr, cfg.end_lr_ratio * cfg.lr
    warmup, decay = lengths(cfg, last + 1)
    rest = max(last - warmup, 0)
    span = min(decay or rest, rest)
    first = last - span if cfg.schedule == "wsd" else warmup
    # A run of one update has the peak, unless that update is to be a decay.
    falls = cfg.schedule in DECAYING and (decay > 0 or (cfg.schedule != "wsd" and last > 0))

    def after(t: Any) -> Any:
        if cfg.schedule == "inverse_sqrt":
            return lr * jnp.sqrt(warmup / (t + 1.0))
        if not falls:
            return lr
        to_come = jnp.clip(first + span - t, 0, span) / max(span, 1)
        height = jnp.sin(jnp.pi / 2 * to_come) ** 2 if cfg.schedule == "cosine" else to_come
        return jnp.where(to_come >= 1, lr, end + (lr - end) * height)

    # Between two full batches, as where the batch grows, the warm-up may pass its end.
    return lambda t: jnp.where(t < warmup, lr * jnp.minimum((t + 1) / max(warmup, 1), 1.0), after(t))


def build(
    cfg: OptimConfig, specs: Any, steps: int, rate: Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """Return the optimizer of a run of `steps` updates; `rate` takes the place of its schedule.

    Weight decay is decoupled and scaled by the learning rate (AdamW, Adafactor, Lion, Muon), or added to the gradient
    as in PyTorch (SGD, Adam). Muon (Jordan et al. 2024) updates the parameters of kind `matrix` with `muon_lr`, on the
    same schedule, and AdamW all others with `lr`. Adafactor (Shazeer & Stern 2018) sees each layer's matrix by itself.
    Under muP each parameter's learning rate has a factor of its own, which spares weight decay, and Adam's epsilon one,
    too. The user's own optimizer is a function like `adamw` below.

    Raises:
      ConfigError: `optim.name` is the user's own and cannot be imported.
    """
    rate = rate or schedule(cfg, steps)
    build_one = named.load("optim.name", cfg.name, named.OPTIMIZERS)
    parts = [build_one(cfg, specs, rate)]
    if cfg.grad_clip is not None:
        parts.insert(0, optax.clip_by_global_norm(cfg.grad_clip))
    factors = jax.tree.map(lambda spec: getattr(cfg.lr_multipliers, spec.kind), specs)
    if any(factor != 1 for factor in jax.tree.leaves(factors)):
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)))
    return moments.stored(optax.chain(*parts), cfg)


def adamw(cfg: OptimConfig, specs: Any, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), from gradients to what is added to parameters.

    Args:
      specs: the nested dict of `ParamSpec`. rate: the learning rate by the number of updates made.
    """
    return with_decay(cfg, specs, rate, optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps), decoupled=True)


def adam(cfg: OptimConfig, specs: Any, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient, as in PyTorch."""
    return with_decay(cfg, specs, rate, optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps), decoupled=False)


def sgd(cfg: OptimConfig, specs: Any, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient, as in PyTorch."""
    return with_decay(cfg, specs, rate, optax.trace(cfg.momentum, cfg.nesterov), decoupled=False)


def lion(cfg: OptimConfig, specs: Any, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023) with decoupled weight decay."""
    return with_decay(cfg, specs, rate, optax.scale_by_lion(cfg.b1, cfg.b2), decoupled=True)


def adafactor(cfg: OptimConfig, specs: Any, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018), which sees each layer's matrix by itself, with decoupled weight decay."""
    direction = per_matrix(optax.chain(optax.adafactor(None), optax.scale(-1.0)), specs)
    return with_decay(cfg, specs, rate, direction, decoupled=True)


def with_decay(cfg: OptimConfig, specs: Any, rate, direction: optax.GradientTransformation, *, decoupled: bool) -> Any:
    """Add weight decay to what `direction` returns (decoupled, Loshchilov & Hutter 2019) or to what it is given."""
    decay = optax.add_decayed_weights(cfg.weight_decay, kind_mask(specs, DECAYED_KINDS))
    direction = _at_width(direction, cfg.name, specs)
    parts = (direction, decay) if decoupled else (decay, direction)
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def _at_width(direction: optax.GradientTransformation, name: str, specs: Any) -> optax.GradientTransformation:
    """Scale what `direction` is given and returns by the factors of muP, if there are any."""
    if all(spec.growth == Growth() for spec in jax.tree.leaves(specs)):
        return direction

    def scaled(factor: Callable[[ParamSpec], float]) -> optax.GradientTransformation:
        # Muon's partition masks parameters of the other part.
        scale = lambda spec, u: u * factor(spec) if _is_array(u) else u  # noqa: E731
        return optax.stateless(lambda updates, _: jax.tree.map(scale, specs, updates, is_leaf=is_spec))

    before = () if name == "sgd" else (scaled(mup.gradient_scale),)
    return optax.chain(*before, direction, scaled(lambda spec: mup.learning_rate(spec, name)))


def muon(cfg: OptimConfig, specs: Any, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the parameters of kind `matrix`, AdamW for all others."""

    def dimensions(tree):
        # Parameters of other optimizers are masked out of `tree`; only its matrices get dimension numbers.
        return jax.tree.map(
            lambda spec, leaf: optax.contrib.MuonDimensionNumbers(*axes_of(spec)) if _is_array(leaf) else leaf,
            specs,
            tree,
            is_leaf=is_spec,
        )

    # Optax's own momentum is bias-corrected; Jordan's is not. Without momentum its transformation needs no state.
    sign = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=dimensions)
    orthogonal = optax.chain(
        optax.trace(cfg.muon_momentum, nesterov=True),
        optax.stateless(lambda updates, _: sign.update(updates, sign.init(updates))[0]),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_by_shape, specs, updates, is_leaf=is_spec)),
    )
    matrices = optax.chain(
        _at_width(_on_auto_axes(orthogonal), cfg.name, specs),
        optax.add_decayed_weights(cfg.weight_decay),
        optax.scale_by_learning_rate(lambda t: rate(t) * (cfg.muon_lr / cfg.lr)),
    )
    labels = jax.tree.map(lambda spec: "matrix" if spec.kind == "matrix" else "rest", specs)
    mask = lambda params: jax.tree.map(  # noqa: E731
        lambda spec, leaf: spec.kind in DECAYED_KINDS if _is_array(leaf) else leaf, specs, params, is_leaf=is_spec
    )
    rest = optax.chain(
        _at_width(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps), cfg.name, specs),
        optax.add_decayed_weights(cfg.weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition({"matrix": matrices, "rest": rest}, labels)


def _scale_by_shape(spec: ParamSpec, update: Any) -> Any:
    """Scale an orthogonal update by sqrt(max(1, fan_out / fan_in)) (Jordan et al. 2024)."""
    if not _is_array(update):
        return update
    fan_in, fan_out = (prod(spec.shape[i] for i in axes) for axes in axes_of(spec))
    return update * max(1.0, fan_out / fan_in) ** 0.5


def _is_array(leaf: Any) -> bool:
    return not isinstance(leaf, optax.MaskedNode)


def _on_auto_axes(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let the compiler shard the inside of `tx`: its products of sharded matrices are ambiguous in Explicit mode."""

    def update(updates, state, params=None):
        kinds = jax.sharding.get_abstract_mesh().axis_types
        if all(kind == AxisType.Manual for kind in kinds):  # no mesh, or each device has its own
            return tx.update(updates, state, params)
        specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
        inside: Any = jax.sharding.auto_axes(lambda u, s: tx.update(u, s, None), out_sharding=specs)
        return inside(updates, state)

    return optax.GradientTransformation(tx.init, update)
