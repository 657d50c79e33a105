"""Predicting tokens one after another: a model and a loss on one batch, as sums and counts.

An objective returns `Sums`, a dict from metric name to `(sum, count)`; training minimises `loss`.
Legend: B batch, S sequence.
"""

from collections.abc import Mapping
from typing import Any

import jax

from bigjax.config import TrainConfig
from bigjax.models import Model
from bigjax.models.attention import context
from bigjax.models.parts.layers import Aux
from bigjax.sharding import UNSHARDED, Layout
from bigjax.tasks import losses
from bigjax.tasks.sums import Sums, entropy_sums, with_aux


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
      `loss` (with smoothing, z-loss and what the model adds), `nll` and `z_loss` in nats over the weighted tokens; what
      else the model says of itself; given `bytes`, also `nll_per_byte` in nats over the bytes of those tokens.
    """
    weights_BS, how = batch["weights"], {}
    if context.resolved(model.cfg, layout, weights_BS.shape[1]):
        weights_BS = layout.place(weights_BS, "batch")
        batch, how["balanced"] = context.arranged(batch, model.cfg, layout)
    x_BSD, aux = model.family.apply(
        params,
        batch["tokens"],
        model.cfg,
        layout=layout,
        positions_BS=batch.get("positions"),
        segments_BS=batch.get("segments"),
        key=key,
        rows_B=batch.get("rows"),
        **how,
    )
    return _next_token_sums(model, params, x_BSD, aux, batch, cfg, layout, weights_BS)


def _next_token_sums(model: Model, params, x_BSD, aux: Aux, batch, cfg, layout: Layout, weights_BS) -> Sums:
    """Score hidden states; `weights_BS` are those of whole rows, in their own order, as `aux` is."""
    sums = with_aux(_token_loss(model, params, x_BSD, batch, cfg, layout), aux, weights_BS)
    if "bytes" in batch:
        sums["nll_per_byte"] = (sums["nll"][0], batch["bytes"].sum())
    return sums


def carried_lm(
    model: Model,
    params: Any,
    batch: Mapping[str, Any],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> tuple[Sums, Any]:
    """As `causal_lm`, of rows that go on from the state that those of an earlier batch ended in; with the state after.

    No gradient flows into that state: this is truncated backpropagation through time (Werbos 1990).

    Args:
      batch: as for `causal_lm`, and `carried`, a tree of `(B, ...)`: the state; `continues` `(B,)`: 0 in rows that
        start afresh.
    """
    x_BSD, carried = model.family.apply_segment(
        params,
        batch["tokens"],
        jax.lax.stop_gradient(batch["carried"]),
        model.cfg,
        layout=layout,
        continues_B=batch["continues"],
        segments_BS=batch.get("segments"),
        key=key,
        rows_B=batch.get("rows"),
    )
    return _next_token_sums(model, params, x_BSD, {}, batch, cfg, layout, batch["weights"]), carried


def _token_loss(model: Model, params, x_BSD, batch, cfg: TrainConfig, layout: Layout) -> Sums:
    """Predict `targets` at every position from hidden states."""
    smoothing = {"label_smoothing": cfg.label_smoothing, "z_loss": cfg.z_loss}
    if cfg.num_loss_chunks > 1:
        entropy = losses.chunked_cross_entropy(
            layout.place(x_BSD, "batch", "seq", "embed"),
            model.family.unembedding(params, model.cfg, layout),
            batch["targets"],
            batch["weights"],
            chunks=cfg.num_loss_chunks,
            final_softcap=model.cfg.final_softcap,
            layout=layout,
            **smoothing,
        )
    else:
        logits_BSV = model.family.logits(params, x_BSD, model.cfg, layout)
        entropy = losses.cross_entropy(logits_BSV, batch["targets"], batch["weights"], **smoothing)
    return entropy_sums(entropy)


def seq2seq(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> Sums:
    """Read one row and predict another, each token from those before it (Sutskever et al. 2014).

    What the rows are, pairs of texts or two parts of one, is up to the data.

    Args:
      batch: `tokens` and `segments` `(B, S)`, 0 in the latter for padding; `inputs`, `targets` and `weights` `(B, T)`;
        `rows` as for `causal_lm`.

    Returns:
      `loss` (with smoothing, z-loss and what the model adds), `nll` and `z_loss` in nats over the weighted targets;
      what else the model says of itself, each row weighted by its targets.
    """
    inputs = {"segments_BS": batch["segments"], "key": key, "rows_B": batch.get("rows"), "layout": layout}
    inputs |= {"inputs_BT": batch["inputs"], "written_BT": batch["weights"]}
    x_BTD, aux = model.family.apply(params, batch["tokens"], model.cfg, **inputs)
    return with_aux(_token_loss(model, params, x_BTD, batch, cfg, layout), aux, batch["weights"])
