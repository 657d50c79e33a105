"""Whether a step has diverged, judged inside the compiled step: no update waits for the host."""

from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from bigjax.config import GuardConfig

Tree = TypeVar("Tree")


@flax.struct.dataclass
class Watch:
    """What the train state remembers in order to judge the next step.

    Attributes:
      recent: (2, window) float32, loss and gradient norm of the latest finite steps, the newest last; NaN where there
        was none yet.
      skipped: () int32, updates dropped so far.
      in_a_row: () int32, how many of them just now, without an update between them.
    """

    recent: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array


def init(cfg: GuardConfig) -> Watch | None:
    """Return the watch of a new run; None if nothing needs to be remembered."""
    if cfg.on_spike == "none" and cfg.on_nonfinite != "skip":
        return None
    zero = jnp.zeros((), jnp.int32)
    return Watch(jnp.full((2, cfg.window), jnp.nan, jnp.float32), zero, zero)


def judge(
    cfg: GuardConfig,
    watch: Watch | None,
    loss: jax.Array,
    grad_norm: jax.Array,
    counted: jax.Array | bool = True,
) -> tuple[Watch | None, dict[str, jax.Array]]:
    """Return the watch after a step, and the verdict on it as metrics; none without a watch.

    `spike`: whether loss or gradient norm lies more than `threshold` median absolute deviations (Hampel 1974) above the
    median of the window, once that is full. A finite spike enters the window too: half of the window may be spikes
    before the median moves, and a loss that stays high is the new normal then, instead of a run that skips for ever.
    `dropped`: whether the update must not be made; `skipped`: how many were dropped so far; `skips_in_a_row`; `median`
    and `deviation` (2,): of loss and gradient norm in the window before. A step that is not `counted`, as nothing was
    predicted in it, does not enter the window.
    """
    if watch is None:
        return None, {}
    values = jnp.stack([loss, grad_norm]).astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(values))
    median = jnp.median(watch.recent, axis=1)
    deviation = jnp.median(jnp.abs(watch.recent - median[:, None]), axis=1)
    # A window that is not full has a median of NaN, above which nothing lies.
    spike = finite & jnp.any(values - median > cfg.threshold * deviation)
    dropped = (~finite & (cfg.on_nonfinite == "skip")) | (spike & (cfg.on_spike == "skip"))
    shifted = jnp.concatenate([watch.recent[:, 1:], values[:, None]], axis=1)
    after = Watch(
        recent=jnp.where(finite & counted, shifted, watch.recent),
        skipped=watch.skipped + dropped,
        in_a_row=jnp.where(dropped, watch.in_a_row + 1, 0),
    )
    verdict = {"spike": spike, "dropped": dropped, "skipped": after.skipped, "skips_in_a_row": after.in_a_row}
    return after, verdict | {"median": median, "deviation": deviation}


def kept_if(dropped: jax.Array, before: Tree, after: Tree) -> Tree:
    """Return `before` where an update is dropped, else `after`; NaN in the other one does no harm."""
    return jax.tree.map(lambda old, new: jnp.where(dropped, old, new), before, after)
