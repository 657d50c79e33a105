"""Losses as sums, so that averages stay exact under any split of the batch.

Legend: B batch, S sequence, D model, V vocab.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigjax.models.parts.layers import soft_cap
from bigjax.sharding import UNSHARDED, Layout


class CrossEntropy(NamedTuple):
    """Weighted sums over the tokens of a batch, in nats.

    Attributes:
      total: what training minimises: smoothed cross-entropy plus z-loss.
      nll: negative log likelihood of the labels. z_loss: the z-loss alone. weight: sum of the weights.
    """

    total: jax.Array
    nll: jax.Array
    z_loss: jax.Array
    weight: jax.Array


def cross_entropy(
    logits_BSV: jax.Array,
    labels_BS: jax.Array,
    weights_BS: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Cross-entropy of integer labels; the vocabulary may be sharded.

    Per token, with Z = sum exp(logits): `log Z - (1 - s) logit[label] - s mean(logits)` (label smoothing s, Szegedy et
    al. 2016, section 7) plus `z_loss * log(Z)^2` (Chowdhery et al. 2022, section 5).
    """
    logits = logits_BSV.astype(jnp.float32)
    log_z, label_logit = _log_z_and_label(logits, labels_BS)
    return _sums(log_z, label_logit, jnp.mean(logits, axis=-1), weights_BS, label_smoothing, z_loss)


def token_nll(logits_BSV: jax.Array, labels_BS: jax.Array) -> jax.Array:
    """Return the negative log likelihood of each label in nats, `(B, S)` float32; the vocabulary may be sharded."""
    log_z, label_logit = _log_z_and_label(logits_BSV.astype(jnp.float32), labels_BS)
    return log_z - label_logit


def _log_z_and_label(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_z = jax.nn.logsumexp(logits, axis=-1)
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]  # split as the labels are, unlike a full iota
    return log_z, jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)


def _sums(log_z, label_logit, mean_logit, weights, label_smoothing: float, z_loss: float) -> CrossEntropy:
    nll = log_z - label_logit
    smoothed = nll + label_smoothing * (label_logit - mean_logit) if label_smoothing else nll
    z = z_loss * jnp.square(log_z)
    total, nll, z = (jnp.sum(per_token * weights) for per_token in (smoothed + z, nll, z))
    return CrossEntropy(total, nll, z, jnp.sum(weights))


def chunked_cross_entropy(
    x_BSD: jax.Array,
    w_VD: jax.Array,
    labels_BS: jax.Array,
    weights_BS: jax.Array,
    *,
    chunks: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    final_softcap: float | None = None,
    layout: Layout = UNSHARDED,
) -> CrossEntropy:
    """`cross_entropy` of the logits `x @ w.T`, of which only S / chunks positions exist at a time.

    The gradient is computed in the forward pass, so the logits are formed once and never stored: the peak is
    `B * S / chunks * V` float32 numbers for the logits plus a float32 copy of `w` for its gradient, against about three
    times `B * S * V` for the plain loss and its backward pass. Only `total` has a gradient.

    Args:
      x_BSD: hidden states, whole along S and D. w_VD: output matrix, whole along D. Both in the compute dtype.
      chunks: number of pieces of the sequence; must divide S, or the part of it that a device has.
    """
    options = _Options(chunks, label_smoothing, z_loss, final_softcap, layout)
    w_VD = layout.place(w_VD, "vocab", "embed")  # its gradient is summed over the devices here
    total, *others = _chunked(x_BSD, w_VD, labels_BS, weights_BS, options)
    return CrossEntropy(total, *jax.lax.stop_gradient(others))


@dataclass(frozen=True, eq=False)
class _Options:
    chunks: int
    label_smoothing: float
    z_loss: float
    final_softcap: float | None
    layout: Layout


def _chunked_primal(x, w, labels, weights, options: _Options) -> CrossEntropy:
    return _sharded(x, w, labels, weights, options, with_gradient=False)[0]


def _chunked_forward(x, w, labels, weights, options: _Options):
    return _sharded(x, w, labels, weights, options, with_gradient=True)


def _chunked_backward(options: _Options, gradients, cotangent: CrossEntropy):
    del options
    # In float32: a cotangent rounded to bfloat16 would make the gradient as a whole up to 1/256 too long or too short.
    dx, dw = ((gradient * cotangent.total).astype(gradient.dtype) for gradient in gradients)
    return dx, dw, None, None


_chunked: Any = jax.custom_vjp(_chunked_primal, nondiff_argnums=(4,))
_chunked.defvjp(_chunked_forward, _chunked_backward)


def _sharded(x, w, labels, weights, options: _Options, *, with_gradient: bool):
    """Run `_local` on every device's part: rows of the batch, or parts of rows, and a range of the vocabulary."""
    layout = options.layout
    vocab_axes, batch_axes = layout.over("vocab"), layout.over("batch", "seq")
    local = partial(_local, options=options, vocab=vocab_axes, batch=batch_axes, with_gradient=with_gradient)
    if not vocab_axes + batch_axes:
        return local(x, w, labels, weights)
    x_spec, w_spec = layout.act("batch", "seq", "embed"), layout.act("vocab", "embed")
    row_spec, sums_spec = layout.act("batch", "seq"), CrossEntropy(*[cast(Any, P())] * 4)
    return jax.shard_map(
        local,
        in_specs=(x_spec, w_spec, row_spec, row_spec),
        out_specs=(sums_spec, (x_spec, w_spec) if with_gradient else None),
        check_vma=False,
    )(x, w, labels, weights)


def _local(x, w, labels, weights, *, options: _Options, vocab, batch, with_gradient: bool):
    """Return the sums and, if asked, the gradients of `total` with respect to x and w, summed over the mesh."""
    B, S, D = x.shape
    size, smoothing, cap = S // options.chunks, options.label_smoothing, options.final_softcap
    num_classes = w.shape[0] * (jax.lax.axis_size(vocab) if vocab else 1)
    class_V = (jax.lax.axis_index(vocab) * w.shape[0] if vocab else 0) + jnp.arange(w.shape[0])
    # The gradient of a logit is (probability - 1 where it is the label), times the weight. In float32 the two terms go
    # through the products apart, so the logits are read and written less often; in fewer bits they would not cancel.
    apart = x.dtype == jnp.float32 and not smoothing and cap is None

    def over_vocab(reduce, value):
        return reduce(value, vocab) if vocab else value

    def chunk(dw, piece):
        x, labels, weights = piece
        logits = soft_cap(jnp.einsum("BSD,VD->BSV", x, w, preferred_element_type=jnp.float32), cap)
        peak = over_vocab(jax.lax.pmax, jnp.max(logits, axis=-1))
        unscaled = jnp.exp(logits - peak[..., None])
        z = over_vocab(jax.lax.psum, jnp.sum(unscaled, axis=-1))
        log_z = peak + jnp.log(z)
        if apart:
            w_label = _rows(w, labels - class_V[0])
            label_logit = over_vocab(jax.lax.psum, jnp.sum(x * w_label, axis=-1))
        else:
            is_label = class_V == labels[..., None]
            label_logit = over_vocab(jax.lax.psum, jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1))
        mean_logit = over_vocab(jax.lax.psum, jnp.sum(logits, axis=-1)) / num_classes if smoothing else 0.0
        sums = _sums(log_z, label_logit, mean_logit, weights, smoothing, options.z_loss)
        if not with_gradient:
            return dw, (sums, None)
        scale = (1 + 2 * options.z_loss * log_z)[..., None] * weights[..., None] / z[..., None]
        if apart:
            dx = jnp.einsum("BSV,VD->BSD", unscaled, w) * scale - weights[..., None] * w_label
            dw += jnp.einsum("BSV,BSD->VD", unscaled, x * scale)
        else:
            target = jnp.where(is_label, 1.0 - smoothing, 0.0) + smoothing / num_classes
            dlogits = unscaled * scale - target * weights[..., None]
            dlogits = dlogits if cap is None else dlogits * (1 - jnp.square(logits / cap))
            dlogits = dlogits.astype(x.dtype)
            dx = jnp.einsum("BSV,VD->BSD", dlogits, w)
            dw += jnp.einsum("BSV,BSD->VD", dlogits, x, preferred_element_type=jnp.float32)
        return dw, (sums, over_vocab(jax.lax.psum, dx))

    pieces = (_split(x, options.chunks), _split(labels, options.chunks), _split(weights, options.chunks))
    empty: Any = jnp.zeros(w.shape, jnp.float32) if with_gradient else None
    dw, (sums, dx) = jax.lax.scan(chunk, empty, pieces)
    if with_gradient and apart:
        dw = dw.at[_index(w, labels - class_V[0])].add(-weights[..., None] * x, mode="drop")
    sums = CrossEntropy(*(jnp.sum(per_chunk) for per_chunk in sums))
    dw = dw.astype(w.dtype) if with_gradient else None  # summed over devices as every other gradient is
    if batch:
        sums, dw = jax.lax.psum((sums, dw), batch)
    if not with_gradient:
        return sums, None
    return sums, (jnp.swapaxes(dx, 0, 1).reshape(B, options.chunks * size, D), dw)


def _index(w_VD: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the row of each label in this device's part of the vocabulary, V where it lies in another part."""
    V = w_VD.shape[0]
    return jnp.where((labels >= 0) & (labels < V), labels, V)


def _rows(w_VD: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the row of each label, zeros where it lies in another part of the vocabulary."""
    return w_VD.at[_index(w_VD, labels)].get(mode="fill", fill_value=0)


def _split(x: jax.Array, chunks: int) -> jax.Array:
    """Turn `(B, S, ...)` into `(chunks, B, S / chunks, ...)`."""
    return jnp.swapaxes(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 0, 1)


def mean_squared_error(predictions: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of squared errors and the sum of the weights; all three have the same shape."""
    error = predictions.astype(jnp.float32) - targets
    return jnp.sum(jnp.square(error) * weights), jnp.sum(weights)


def binary_log_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of `-log p(label)` in nats for labels in [0, 1], and the sum of the weights.

    Written as `softplus(x) - x * label`, which neither overflows nor loses small probabilities.
    """
    logits = logits.astype(jnp.float32)
    return jnp.sum((jax.nn.softplus(logits) - logits * labels) * weights), jnp.sum(weights)
