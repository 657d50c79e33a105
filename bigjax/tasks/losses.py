"""Losses as sums, so that averages stay exact under any split of the batch.

Legend: B batch, S sequence, D model, V vocab.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigjax.models.parts import target
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

    The gradient is computed in the forward pass, so the logits need not be stored: the peak is `B * S / chunks * V`
    float32 numbers for the logits and what `TableGradient` says, against about three times `B * S * V` for the plain
    loss and its backward pass. Only `total` has a gradient.

    Args:
      x_BSD: hidden states, whole along S and D. w_VD: output matrix, stored in parts or whole, `reduced` or not
        (`train.reduction`). Both in the compute dtype.
      chunks: number of pieces of the sequence; must divide S, or the part of it that a device has.
    """
    options = _Options(chunks, label_smoothing, z_loss, final_softcap, layout)
    total, *others = _chunked(x_BSD, w_VD, labels_BS, weights_BS, options)
    return CrossEntropy(total, *jax.lax.stop_gradient(others))


TableGradient = Literal["added", "at once", "again"]
"""How the chunked loss forms the gradient of the output matrix, on a device with T tokens:

- `added`: chunk by chunk, to `V * D` float32 numbers.
- `at once`: in one product, for which the gradients of the logits, `T * V`, are kept in the compute dtype.
- `again`: a part of the vocabulary at a time, for which the logits are computed again: nothing is kept."""

LITTLE_MEMORY = {"TPU v5 lite": 2**30}
"""Devices on which logits are computed twice rather than that more than so many bytes are kept.

For a Llama 3.1 8B, fully sharded, and a row of 8,192 tokens that leaves 2 GiB less alive at once, of the 16 that v5e
has, and costs 2 % of the cycles by the compiler's estimate."""


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
    def scaled(gradient: jax.Array) -> jax.Array:
        unreduced = jax.typeof(gradient).sharding.spec.unreduced
        total = jax.reshard(cotangent.total, P(reduced=unreduced)) if unreduced else cotangent.total
        return (gradient * total).astype(gradient.dtype)

    return *map(scaled, gradients), None, None


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
    assert w_spec is not None
    dw_spec = w_spec.update(unreduced=frozenset(batch_axes))
    sums, gradients = jax.shard_map(
        local,
        in_specs=(x_spec, w_spec, row_spec, row_spec),
        out_specs=(sums_spec, (x_spec, dw_spec) if with_gradient else None),
        check_vma=False,
    )(x, layout.place(w, "vocab", "embed"), labels, weights)
    if not with_gradient:
        return sums, None
    dx, dw = cast(Any, gradients)
    stored = jax.typeof(w).sharding.spec
    dw = jax.reshard(dw, P(*stored.partitions, unreduced=stored.reduced))
    # Summed here: the compiler would keep what it is made of until the rest of the backward pass is done.
    return sums, jax.lax.optimization_barrier((dx, dw))


def _table_gradient(x: jax.Array, w: jax.Array, chunks: int) -> TableGradient:
    """Return how to form the gradient of the output matrix, from one device's part of the arguments."""
    if x.dtype == jnp.float32:
        return "added"
    kept, added = x.dtype.itemsize * x.shape[0] * x.shape[1] * w.shape[0], 4 * w.size
    most = LITTLE_MEMORY.get(target.device_kind())
    if most is not None and min(kept, added) > most and w.shape[0] % chunks == 0:
        return "again"
    return "at once" if kept <= added else "added"


def _local(x, w, labels, weights, *, options: _Options, vocab, batch, with_gradient: bool):
    """Return the sums over the mesh and, if asked, the gradient of `total` with respect to x, and this device's summand
    of that with respect to w."""
    smoothing, cap = options.label_smoothing, options.final_softcap
    num_classes = w.shape[0] * (jax.lax.axis_size(vocab) if vocab else 1)
    first = jax.lax.axis_index(vocab) * w.shape[0] if vocab else 0
    class_V = first + jnp.arange(w.shape[0])
    how = _table_gradient(x, w, options.chunks)
    # The gradient of a logit is (probability - 1 where it is the label), times the weight. In float32 the two terms go
    # through the products apart, so the logits are read and written less often; in fewer bits they would not cancel.
    apart = x.dtype == jnp.float32 and not smoothing and cap is None

    def over_vocab(reduce, value):
        return reduce(value, vocab) if vocab else value

    def logits_of(x, w):
        return soft_cap(jnp.einsum("BSD,VD->BSV", x, w, preferred_element_type=jnp.float32), cap)

    def dlogits_of(logits, unscaled, scale, is_label, weights):
        wanted = jnp.where(is_label, 1.0 - smoothing, 0.0) + smoothing / num_classes
        dlogits = unscaled * scale - wanted * weights[..., None]
        dlogits = dlogits if cap is None else dlogits * (1 - jnp.square(logits / cap))
        return dlogits.astype(x.dtype)

    def chunk(dw, piece):
        x, labels, weights = piece
        logits = logits_of(x, w)
        peak = over_vocab(jax.lax.pmax, jnp.max(logits, axis=-1))
        unscaled = jnp.exp(logits - peak[..., None])
        z = over_vocab(jax.lax.psum, jnp.sum(unscaled, axis=-1))
        log_z = peak + jnp.log(z)
        is_label = class_V == labels[..., None]
        if apart:
            w_label = _rows(w, labels - class_V[0])
            label_logit = over_vocab(jax.lax.psum, jnp.sum(x * w_label, axis=-1))
        else:
            label_logit = over_vocab(jax.lax.psum, jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1))
        mean_logit = over_vocab(jax.lax.psum, jnp.sum(logits, axis=-1)) / num_classes if smoothing else 0.0
        sums = _sums(log_z, label_logit, mean_logit, weights, smoothing, options.z_loss)
        if not with_gradient:
            return dw, (sums, None, None)
        scale = (1 + 2 * options.z_loss * log_z)[..., None] * weights[..., None] / z[..., None]
        if apart:
            dx = jnp.einsum("BSV,VD->BSD", unscaled, w) * scale - weights[..., None] * w_label
            dw += jnp.einsum("BSV,BSD->VD", unscaled, x * scale)
            return dw, (sums, over_vocab(jax.lax.psum, dx), None)
        dlogits = dlogits_of(logits, unscaled, scale, is_label, weights)
        dx = jnp.einsum("BSV,VD->BSD", dlogits, w)
        if how == "added":
            dw += jnp.einsum("BSV,BSD->VD", dlogits, x, preferred_element_type=jnp.float32)
        kept = {"added": None, "at once": dlogits, "again": (peak, scale)}[how]
        return dw, (sums, over_vocab(jax.lax.psum, dx), kept)

    pieces = (_split(x, options.chunks), _split(labels, options.chunks), _split(weights, options.chunks))
    empty: Any = jnp.zeros(w.shape, jnp.float32) if with_gradient and how == "added" else None
    dw, (sums, dx, kept) = jax.lax.scan(chunk, empty, pieces)
    sums = CrossEntropy(*(jnp.sum(per_chunk) for per_chunk in sums))
    sums = jax.lax.psum(sums, batch) if batch else sums
    if not with_gradient:
        return sums, None
    dx = _joined(dx)
    if how == "at once":
        dw = jnp.einsum("NBSV,NBSD->VD", kept, pieces[0])
    elif how == "again":
        peak, scale = map(_joined, kept)
        part_V = w.shape[0] // options.chunks

        def part(w_then_dw, start):
            w = jax.lax.dynamic_slice_in_dim(w_then_dw, start, part_V)
            logits = logits_of(x, w)
            unscaled = jnp.exp(logits - peak[..., None])
            is_label = first + start + jnp.arange(part_V) == labels[..., None]
            dlogits = dlogits_of(logits, unscaled, scale, is_label, weights)
            dw = jnp.einsum("BSV,BSD->VD", dlogits, x)
            return jax.lax.dynamic_update_slice_in_dim(w_then_dw, dw, start, 0), None

        # Without the barrier the compiler may keep the logits of the first pass, or two copies of the matrix.
        x, w, dx = jax.lax.optimization_barrier((x, w, dx))
        dw, _ = jax.lax.scan(part, w, part_V * jnp.arange(options.chunks))  # each part in the place of its own weights
    elif apart:
        dw = dw.at[_index(w, labels - class_V[0])].add(-weights[..., None] * x, mode="drop")
    return sums, (dx, dw.astype(w.dtype))


def _joined(pieces: jax.Array) -> jax.Array:
    """Undo `_split`."""
    chunks, B, size = pieces.shape[:3]
    return jnp.swapaxes(pieces, 0, 1).reshape(B, chunks * size, *pieces.shape[3:])


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
