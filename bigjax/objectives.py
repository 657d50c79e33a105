"""Objectives: a model and a loss on one batch, as sums and counts.

An objective returns `Sums`, a dict from metric name to `(sum, count)`; training minimises `loss`.
Legend: B batch, S sequence.
"""

from collections.abc import Mapping
from typing import Any

import jax

from bigjax import losses
from bigjax.config import TrainConfig
from bigjax.models import Model
from bigjax.sharding import UNSHARDED, Layout

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), scalars. Adding both before dividing makes averages exact under any split."""


def causal_lm(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> Sums:
    """Predict `targets` from the tokens up to each position.

    Args:
      batch: `tokens`, `targets`, `weights` `(B, S)`; `segments` and `positions` `(B, S)` when documents are kept apart;
        `rows` `(B,)`, the global row of each example, when `key` draws dropout; `bytes` `(B, S)` when scoring text.

    Returns:
      `loss` (with smoothing and z-loss), `nll` and `z_loss` in nats over the weighted tokens; given `bytes`, also
      `nll_per_byte` in nats over the bytes that those tokens stand for.
    """
    x_BSD = model.family.apply(
        params,
        batch["tokens"],
        model.cfg,
        layout=layout,
        positions_BS=batch.get("positions"),
        segments_BS=batch.get("segments"),
        key=key,
        rows_B=batch.get("rows"),
    )
    smoothing = {"label_smoothing": cfg.label_smoothing, "z_loss": cfg.z_loss}
    if cfg.loss_chunks > 1:
        entropy = losses.chunked_cross_entropy(
            layout.place(x_BSD, "batch", "seq", "embed"),
            model.family.unembedding(params, model.cfg, layout),
            batch["targets"],
            batch["weights"],
            chunks=cfg.loss_chunks,
            final_softcap=model.cfg.final_softcap,
            layout=layout,
            **smoothing,
        )
    else:
        logits_BSV = model.family.logits(params, x_BSD, model.cfg, layout)
        entropy = losses.cross_entropy(logits_BSV, batch["targets"], batch["weights"], **smoothing)
    sums: Sums = {
        "loss": (entropy.total, entropy.weight),
        "nll": (entropy.nll, entropy.weight),
        "z_loss": (entropy.z_loss, entropy.weight),
    }
    if "bytes" in batch:
        sums["nll_per_byte"] = (entropy.nll, batch["bytes"].sum())
    return sums


OBJECTIVES = {"causal_lm": causal_lm}
