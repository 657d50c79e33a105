"""Optax chains and learning-rate schedules from the configuration."""

from collections.abc import Callable
from functools import cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from bigjax.config import OptimConfig
from bigjax.data.batches.ramp import BatchRamp
from bigjax.models.parts import mup
from bigjax.models.parts.matrices import axes_of, is_spec, per_matrix
from bigjax.params import Growth, ParamSpec, kind_mask

BLOCK = 4096
"""How many learning rates `looked_up` computes at a time."""

DECAYED_KINDS = ("embedding", "head", "matrix")
"""Weight decay spares norms and biases (Brown et al. 2020 follow Loshchilov & Hutter 2019; the custom since GPT-2)."""


def schedule(cfg: OptimConfig, steps: int, ramp: BatchRamp | None = None) -> Callable[[Any], Any]:
    """Return the learning rate as a function of the number of updates made, 0 for the first.

    Where the batch grows, by `ramp`, it is a function of the rows seen: below, all is counted in full batches.

    After a linear warm-up that reaches `lr` at update `warmup_steps`:
      constant; linear or cosine (Loshchilov & Hutter 2017) to `end_lr_ratio * lr` at the last update, or `decay_steps`
        after the warm-up;
      wsd: constant, then linear over the last `decay_steps` (Hu et al. 2024, section 4; Hägele et al. 2024);
      inverse_sqrt: `lr * sqrt(warmup_steps / t)` (Vaswani et al. 2017, equation 3, in terms of its peak).
    """
    if ramp is not None and len(ramp.sizes) > 1:
        by_rows = _in_full_batches(ramp)
        last = ramp.rows_before(steps - 1) // ramp.sizes[-1]
        full = _of_full_batches(cfg, last)
        return lambda t: full(by_rows(t))
    return _of_full_batches(cfg, steps - 1)


def rates(schedule: Callable[[Any], Any], updates: Any) -> np.ndarray:
    """Return the learning rates of many updates, float32 of the shape of their numbers, `(N,)`."""
    return np.broadcast_to(np.asarray(jax.vmap(schedule)(updates), np.float32), updates.shape)


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
    """Return the learning rate as a function of full batches seen, `last` of them before the last update."""
    lr, end, warmup = cfg.lr, cfg.end_lr_ratio * cfg.lr, cfg.warmup_steps
    rest = max(last - warmup, 1)
    if cfg.schedule == "linear":
        after = optax.linear_schedule(lr, end, cfg.decay_steps or rest)
    elif cfg.schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, cfg.decay_steps or rest, cfg.end_lr_ratio)
    elif cfg.schedule == "wsd":
        after = optax.linear_schedule(lr, end, max(cfg.decay_steps, 1), max(rest - cfg.decay_steps, 0))
        after = after if cfg.decay_steps else optax.constant_schedule(lr)
    elif cfg.schedule == "inverse_sqrt":
        after = lambda t: lr * jnp.sqrt(warmup / (t + warmup + 1.0))  # noqa: E731
    else:
        after = optax.constant_schedule(lr)
    if not warmup:
        return after
    ramp = optax.linear_schedule(lr / warmup, lr, max(warmup - 1, 1)) if warmup > 1 else optax.constant_schedule(lr)
    return optax.join_schedules([ramp, after], [warmup])


def build(
    cfg: OptimConfig, specs: Any, steps: int, rate: Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """Return the optimizer of a run of `steps` updates; `rate` takes the place of its schedule.

    Weight decay is decoupled and scaled by the learning rate (AdamW, Adafactor, Lion, Muon), or added to the gradient
    as in PyTorch (SGD, Adam). Muon (Jordan et al. 2024) updates the parameters of kind `matrix` with `muon_lr`, on the
    same schedule, and AdamW all others with `lr`. Adafactor (Shazeer & Stern 2018) sees each layer's matrix by itself.
    Under muP each parameter's learning rate has a factor of its own, which spares weight decay, and Adam's epsilon one,
    too.
    """
    rate = rate or schedule(cfg, steps)
    coupled, decoupled = (partial(_with_decay, cfg, specs, rate, decoupled=which) for which in (False, True))
    adafactor = optax.chain(optax.adafactor(None), optax.scale(-1.0))
    builders = {
        "adamw": lambda: decoupled(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)),
        "adam": lambda: coupled(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)),
        "sgd": lambda: coupled(optax.trace(cfg.momentum, cfg.nesterov)),
        "lion": lambda: decoupled(optax.scale_by_lion(cfg.b1, cfg.b2)),
        "adafactor": lambda: decoupled(per_matrix(adafactor, specs)),
        "muon": lambda: _muon(cfg, specs, rate),
    }
    parts = [builders[cfg.name]()]
    if cfg.grad_clip is not None:
        parts.insert(0, optax.clip_by_global_norm(cfg.grad_clip))
    factors = jax.tree.map(lambda spec: getattr(cfg.lr_multipliers, spec.kind), specs)
    if any(factor != 1 for factor in jax.tree.leaves(factors)):
        parts.append(optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)))
    return optax.chain(*parts)


def _with_decay(cfg: OptimConfig, specs: Any, rate, direction: optax.GradientTransformation, *, decoupled: bool) -> Any:
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


def _muon(cfg: OptimConfig, specs: Any, rate) -> Any:
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
