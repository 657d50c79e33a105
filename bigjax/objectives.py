"""Objectives: a model and a loss on one batch, as sums and counts.

An objective returns `Sums`, a dict from metric name to `(sum, count)`; training minimises `loss`.
Legend: B batch, S sequence.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigjax import losses
from bigjax.config import TrainConfig
from bigjax.models import Model
from bigjax.models.layers import Aux
from bigjax.sharding import UNSHARDED, Layout

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), scalars; a metric of the model's own may have an array of sums. Adding both before dividing
makes averages exact under any split."""


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
    x_BSD, aux = model.family.apply(
        params,
        batch["tokens"],
        model.cfg,
        layout=layout,
        positions_BS=batch.get("positions"),
        segments_BS=batch.get("segments"),
        key=key,
        rows_B=batch.get("rows"),
    )
    return _next_token_sums(model, params, x_BSD, aux, batch, cfg, layout)


def _next_token_sums(model: Model, params, x_BSD, aux: Aux, batch, cfg: TrainConfig, layout: Layout) -> Sums:
    sums = _with_aux(_token_loss(model, params, x_BSD, batch, cfg, layout), aux, batch["weights"])
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
    return _next_token_sums(model, params, x_BSD, {}, batch, cfg, layout), carried


def _token_loss(model: Model, params, x_BSD, batch, cfg: TrainConfig, layout: Layout) -> Sums:
    """Predict `targets` at every position from hidden states."""
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
    return _entropy_sums(entropy)


def _with_aux(sums: Sums, aux: Aux, weights_BS: jax.Array) -> Sums:
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
    return _with_aux(_token_loss(model, params, x_BTD, batch, cfg, layout), aux, batch["weights"])


def masked_lm(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> Sums:
    """Predict what stood at masked positions (Devlin et al. 2019, section 3.1).

    Args:
      batch: as `data.masking.MaskedText.arrays` makes it, and `rows` as for `causal_lm`.

    Returns:
      `loss`, `nll` and `z_loss` in nats over the masked tokens, and `accuracy`, the share that is predicted first.
    """
    inputs = {"segments_BS": batch["segments"], "key": key, "rows_B": batch.get("rows")}
    x_BSD, _ = model.family.apply(params, batch["tokens"], model.cfg, layout=layout, **inputs)
    logits_BMV = model.family.masked_logits(params, x_BSD, batch["masked"], model.cfg, layout)
    return _classify(logits_BMV, batch, cfg)


def classification(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> Sums:
    """Predict the class of each row (Devlin et al. 2019, section 4.1).

    Args:
      batch: as `data.labelled.LabelledText.arrays` makes it, and `rows` as for `causal_lm`.

    Returns:
      `loss`, `nll` and `z_loss` in nats over the rows, and `accuracy`.
    """
    return _classify(class_logits(model, params, batch, layout=layout, key=key), batch, cfg)


def class_logits(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> jax.Array:
    """Return logits `(B, C)` in float32 of the class of each row of a batch for `classification`."""
    inputs: dict[str, Any] = {"layout": layout, "key": key, "rows_B": batch.get("rows")}
    x_BSD, _ = model.family.apply(params, batch["tokens"], model.cfg, segments_BS=batch["segments"], **inputs)
    if key is not None:
        inputs["key"] = jax.random.fold_in(key, model.cfg.num_layers + 1)  # layers and embedding use the numbers below
    return model.family.class_logits(params, x_BSD, model.cfg, **inputs)


def _classify(logits: jax.Array, batch: Mapping[str, jax.Array], cfg: TrainConfig) -> Sums:
    """Score logits `(..., classes)` against `targets` `(...)`."""
    entropy = losses.cross_entropy(
        logits, batch["targets"], batch["weights"], label_smoothing=cfg.label_smoothing, z_loss=cfg.z_loss
    )
    right = jnp.argmax(logits, axis=-1) == batch["targets"]
    return _entropy_sums(entropy) | {"accuracy": (jnp.sum(right * batch["weights"]), entropy.weight)}


def _entropy_sums(entropy: losses.CrossEntropy) -> Sums:
    return {
        "loss": (entropy.total, entropy.weight),
        "nll": (entropy.nll, entropy.weight),
        "z_loss": (entropy.z_loss, entropy.weight),
    }


OBJECTIVES = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "classification": classification,
    "seq2seq": seq2seq,
    "span_corruption": seq2seq,
    "prefix_lm": seq2seq,
}
"""`train.objective` -> function. `config_checks.OBJECTIVES` says which families each trains."""
