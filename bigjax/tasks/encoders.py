"""Objectives of encoders: masked tokens, and the classes of rows, of tokens, and of places in a row.

Legend: B batch, S sequence, M masked positions, C classes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.config import TrainConfig
from bigjax.models import Model
from bigjax.sharding import UNSHARDED, Layout
from bigjax.tasks import losses
from bigjax.tasks.sums import Sums, classify

_NOWHERE = -1e30
"""A logit whose exponential is 0, and that can be added up without becoming infinite."""


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
    return classify(masked_logits(model, params, batch, layout=layout, key=key), batch, cfg)


def masked_logits(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> jax.Array:
    """Return logits `(B, M, V)` in float32 of the tokens at the masked positions of a batch."""
    x_BSD = _encode(model, params, batch, layout, key)
    return model.family.masked_logits(params, x_BSD, batch["masked"], model.cfg, layout)


def masked_lm_next_sentence(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> Sums:
    """As `masked_lm`, and say whether the second half of each row follows the first (Devlin et al. 2019, appendix A.2).

    Args:
      batch: as `data.next_sentence.SentencePairs.arrays` makes it, passed through `whole_batch`; `rows` as for
        `causal_lm`.

    Returns:
      what `masked_lm` does, but that `loss` is the sum of both mean losses; `next_sentence_nll` in nats over the rows
      and `next_sentence_accuracy`.
    """
    x_BSD = _encode(model, params, batch, layout, key)
    sums = classify(model.family.masked_logits(params, x_BSD, batch["masked"], model.cfg, layout), batch, cfg)
    logits_B2 = model.family.class_logits(params, x_BSD, model.cfg, layout=layout)
    pairs = {"targets": batch["next_targets"], "weights": batch["next_weights"]}
    following = classify(logits_B2, pairs, cfg)
    per_row = losses.token_nll(logits_B2, batch["next_targets"])
    (total, count), both = sums["loss"], jnp.sum(per_row * batch["next_scale"] * batch["next_weights"])
    return sums | {
        "loss": (total + both, count),
        "next_sentence_nll": following["nll"],
        "next_sentence_accuracy": following["accuracy"],
    }


def scale_pairs(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Add `next_scale` `(B,)`, predicted tokens for each pair: by it a sum over tokens and one over pairs, both divided
    by the number of tokens, are two means."""
    tokens_per_pair = jnp.sum(batch["weights"]) / jnp.maximum(jnp.sum(batch["next_weights"]), 1.0)
    return {**batch, "next_scale": tokens_per_pair * jnp.ones_like(batch["next_weights"])}


def _encode(model: Model, params, batch: Mapping[str, jax.Array], layout: Layout, key) -> jax.Array:
    """Return the hidden states `(B, S, D)` of `tokens`, `segments` and, where there are any, `types`."""
    inputs = {"segments_BS": batch["segments"], "types_BS": batch.get("types"), "rows_B": batch.get("rows")}
    return model.family.apply(params, batch["tokens"], model.cfg, layout=layout, key=key, **inputs)[0]


def classification(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> Sums:
    """Predict the class of each row, or of each word at its first token (Devlin et al. 2019, sections 4.1 and 5.3).

    Args:
      batch: as `data.labelled.LabelledText.arrays` or `data.tagged.TaggedText.arrays` makes it, as the head asks, and
        `rows` as for `causal_lm`.

    Returns:
      `loss`, `nll` and `z_loss` in nats over the rows or words, and `accuracy`.
    """
    return classify(class_logits(model, params, batch, layout=layout, key=key), batch, cfg)


def class_logits(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> jax.Array:
    """Return logits `(B, C)` or `(B, S, C)` in float32 of the class of each row or token of a batch."""
    x_BSD = _encode(model, params, batch, layout, key)
    # The dropout of a head needs a key of its own: layers and embedding use the numbers below.
    head_key = None if key is None else jax.random.fold_in(key, model.cfg.num_layers + 1)
    dropout = {"key": head_key, "rows_B": batch.get("rows")}
    return model.family.class_logits(params, x_BSD, model.cfg, layout=layout, **dropout)


def question_answering(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    cfg: TrainConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> Sums:
    """Predict where in each row an answer starts and ends (Devlin et al. 2019, section 4.2).

    Args:
      batch: as `data.answers.AnswerSpans.arrays` makes it, and `rows` as for `causal_lm`.

    Returns:
      `loss`, `nll` and `z_loss` in nats over both ends of all rows, and `accuracy`, the share of ends that are right.
    """
    return classify(span_logits(model, params, batch, layout=layout, key=key), batch, cfg)


def span_logits(
    model: Model,
    params: Any,
    batch: Mapping[str, jax.Array],
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
) -> jax.Array:
    """Return logits `(B, 2, S)` in float32 of where an answer starts and ends, next to none at padding."""
    x_BSD = _encode(model, params, batch, layout, key)
    logits_BS2 = model.family.class_logits(params, x_BSD, model.cfg, layout=layout)
    logits_BS2 = jnp.where(batch["segments"][..., None] > 0, logits_BS2, _NOWHERE)
    return jnp.swapaxes(logits_BS2, 1, 2)
