"""What an objective returns: sums and counts, so that averages are exact under any split.

Legend: B batch, S sequence.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bigjax.config import TrainConfig
from bigjax.models.parts.layers import Aux
from bigjax.tasks import losses

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), scalars; a metric of the model's own may have an array of sums. Adding both before dividing
makes averages exact under any split."""


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """Return `total / count`, 0 where nothing was counted: such a batch has no loss and no gradient."""
    return jnp.where(count == 0, 0, total / jnp.where(count == 0, 1, count))


def per_count(count: jax.Array) -> jax.Array:
    """Return `1 / count`, 0 for a count of 0."""
    return jnp.where(count == 0, 0, 1 / jnp.where(count == 0, 1, count))


def classify(logits: jax.Array, batch: Mapping[str, jax.Array], cfg: TrainConfig) -> Sums:
    """Score logits `(..., classes)` against `targets` `(...)`."""
    entropy = losses.cross_entropy(
        logits, batch["targets"], batch["weights"], label_smoothing=cfg.label_smoothing, z_loss=cfg.z_loss
    )
    right = jnp.argmax(logits, axis=-1) == batch["targets"]
    return entropy_sums(entropy) | {"accuracy": (jnp.sum(right * batch["weights"]), entropy.weight)}


def entropy_sums(entropy: losses.CrossEntropy) -> Sums:
    return {
        "loss": (entropy.total, entropy.weight),
        "nll": (entropy.nll, entropy.weight),
        "z_loss": (entropy.z_loss, entropy.weight),
    }


def with_aux(sums: Sums, aux: Aux, weights_BS: jax.Array) -> Sums:
    """Add what the model says of itself, each piece of a row weighted by its tokens, so that any split is exact."""
    sums = dict(sums)
    for name, mean_BN in aux.items():
        B, N, *_ = mean_BN.shape
        weights_BN = weights_BS.reshape(B, N, -1).sum(axis=-1)
        total = jnp.sum(jnp.moveaxis(mean_BN, (0, 1), (-2, -1)) * weights_BN, axis=(-2, -1))
        if name == "loss":
            sums["loss"] = (sums["loss"][0] + total, sums["loss"][1])
        else:
            sums[name] = (total, weights_BS.sum())
    return sums
