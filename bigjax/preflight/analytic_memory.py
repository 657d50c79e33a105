"""Bytes of memory that a training step holds on one device, from first principles.

The state is exact. The rest follows which arrays are alive at four moments, of which the worst counts: when the loss
has its logits, when the backward pass works on one layer, when a microbatch's gradient is added to the others, and when
the optimizer has all gradients. Which arrays those are was read from programs of the TPU compiler;
`benchmarks/analytic_memory.py` measures the error.
"""

from dataclasses import dataclass
from math import prod

from bigjax.matrices import axes_of
from bigjax.params import ParamSpec
from bigjax.preflight.analytic_share import Share

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1, "lion": 1}
"""Arrays of a parameter's size that an optimizer keeps; Adafactor and Muon depend on the parameter."""

ADAFACTOR_LEAST_SIZE = 128
"""Optax factors second moments where the two largest axes have at least this size (Shazeer & Stern 2018)."""

SAVED_BY_ACTIVATION = {"gelu_tanh": 5, "gelu": 4, "swiglu": 6, "geglu": 7, "relu": 2, "relu_squared": 3}
"""Arrays of the MLP's width that a layer keeps when nothing is rematerialised: JAX saves the value of every operation
that a derivative needs, the input of the last matrix product included."""

RECOMPUTED_BY_ACTIVATION = {"gelu_tanh": 2, "gelu": 2, "swiglu": 3, "geglu": 3, "relu": 1, "relu_squared": 2}
"""Those that exist while one layer is recomputed: the compiler fuses the others into what uses them."""


@dataclass(frozen=True)
class Peak:
    """Bytes alive when a device holds the most, besides parameters and optimizer state.

    Attributes:
      moment: `loss`, `backward`, `accumulate` or `update`.
      gradients: of parameters, in float32. activations: saved for the backward pass. temporaries: all else.
    """

    moment: str
    gradients: int
    activations: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gradients + self.activations + self.temporaries


def params_bytes(share: Share) -> int:
    """Return the bytes of the float32 parameters."""
    return 4 * sum(share.stored(spec) for spec in share.specs.values())


def optimizer_bytes(share: Share) -> int:
    """Return the bytes of the optimizer's state and the averaged parameters, without counters of a few bytes."""
    name = share.cfg.optim.name
    average = 0 if share.cfg.optim.ema_decay is None else params_bytes(share)
    if name == "adafactor":
        elements = sum(_adafactor_elements(spec, share) for spec in share.specs.values())
    elif name == "muon":
        elements = sum((1 if spec.kind == "matrix" else 2) * share.stored(spec) for spec in share.specs.values())
    else:
        elements = MOMENTS[name] * sum(share.stored(spec) for spec in share.specs.values())
    return 4 * elements + average


def _adafactor_elements(spec: ParamSpec, share: Share) -> int:
    """Return the size of Adafactor's state of a parameter: of each layer's matrix the means over rows and columns.

    Optax puts an array of one number in the place of what it does not keep.
    """
    layers = spec.shape[0] if spec.stacked else 1
    stored = share.stored_shape(spec)
    axes = axes_of(spec) if spec.kind == "matrix" else [(i,) for i in range(int(spec.stacked), len(spec.shape))]
    whole = sorted(prod(spec.shape[i] for i in group) for group in axes)
    if len(whole) < 2 or whole[-2] < ADAFACTOR_LEAST_SIZE:
        return prod(stored) + 2 * layers
    return layers * (sum(prod(stored[i] for i in group) for group in axes) + 1)


def peak(share: Share) -> Peak:
    """Return what is alive when the device holds the most."""
    saved = saved_bytes(share)
    gradients = params_bytes(share)
    block_gradients = 4 * sum(share.stored(spec) for name, spec in share.specs.items() if name.startswith("blocks/"))
    tokens, width = share.tokens, share.cfg.model.d_model
    stream = tokens * width * share.item
    accumulated = gradients if share.cfg.train.microbatches > 1 else 0
    logits = 4 * tokens // share.cfg.train.loss_chunks * share.vocab
    late = logits if _logits_outlive_loss(share) else 0
    output = share.vocab * width
    head_gradient = 0 if late else output * (4 if share.cfg.model.tie_embeddings or _chunked(share) else share.item)
    # The loss reads the output matrix in the compute dtype and the last hidden states in float32, too; in pieces, it
    # adds the gradient of the matrix up in float32 and keeps that of the hidden states.
    loss = logits + output * share.item + 4 * tokens * width + 2 * stream
    loss += 4 * output + stream if _chunked(share) else 0
    unrolled = share.cfg.model.layers == "unroll"
    # Gradients of unrolled layers are stacked in the end: for a moment they are there twice.
    again = block_gradients if unrolled else 0
    moments = [
        Peak("loss", accumulated, saved, loss),
        Peak(
            "backward",
            accumulated + block_gradients,
            saved,
            late + head_gradient + 2 * stream + _layer_bytes(share) + again,
        ),
        Peak("update", gradients, 0, 0),
    ]
    if accumulated:
        # The sum so far, what is added to it, and the new sum.
        moments.append(Peak("accumulate", 3 * gradients, 0, late + 2 * stream))
    return max(moments, key=lambda moment: moment.total)


def _chunked(share: Share) -> bool:
    return share.cfg.train.loss_chunks > 1


def _logits_outlive_loss(share: Share) -> bool:
    """Whether the gradient of the output matrix is formed after the layers' backward pass.

    The compiler forms the two parts of a tied table's gradient together, when the look-up's is known, unless one has to
    be summed over devices.
    """
    return share.cfg.model.tie_embeddings and not _chunked(share) and not share.layout.over("batch")


def saved_bytes(share: Share) -> int:
    """Return the bytes that the forward pass of one microbatch leaves in device memory for the backward pass."""
    return share.cfg.model.num_layers * _saved_by_layer(share)


def _saved_by_layer(share: Share) -> int:
    """Return the bytes that one layer saves under its remat policy; its input is always among them."""
    model, item, tokens = share.cfg.model, share.item, share.tokens
    residual = share.rows * share.residual_len * model.d_model * item
    whole = tokens * model.d_model * item
    heads = tokens * share.heads * model.head_dim * item
    qkv = heads + 2 * tokens * share.kv_heads * model.head_dim * item
    mlp = tokens * share.d_ff * item
    kind, _, listed = share.cfg.model.remat.partition(":")
    if kind in ("full", "offload"):
        return residual
    # Without a norm after it, the result of the last product of a layer is in no derivative.
    mlp_out = residual if share.normed_outputs else 0
    if kind == "dots":  # q, k, v, the output of attention and the one or two products into the MLP
        return 2 * residual + qkv + (2 if share.gated else 1) * mlp + mlp_out
    if kind == "save":
        sizes = {"qkv": qkv, "attn_mixed": heads, "attn_out": residual, "mlp_hidden": mlp, "mlp_out": mlp_out}
        return residual + sum(sizes[name] for name in set(listed.split(",")))
    attended = 2 * heads + 2 * tokens * share.attended_kv_heads * model.head_dim * item
    if model.layers == "unroll":
        # One program: what is cheap to compute again is fused into its use, so norms, activations and casts of weights
        # or probabilities are not kept.
        gathered = _layer_weights(share) * item if share.layout.sizes["fsdp"] > 1 else 0
        scores = 4 * share.rows * share.heads * share.scores if share.stored_scores else 0
        return 2 * residual + attended + (2 if share.gated else 1) * mlp + 2 * mlp_out + scores + gathered
    # Across the loop every array is kept as the forward pass wrote it, the gathered or cast weights included.
    scores = _probabilities(share)
    again = 0 if model.attention in ("reference", "xla") else heads  # a kernel keeps its output in its own layout
    weights = _layer_weights(share) * item if item == 2 or share.layout.sizes["fsdp"] > 1 else 0
    hidden = SAVED_BY_ACTIVATION[model.activation] * mlp
    return 2 * residual + 2 * mlp_out + 2 * whole + attended + again + hidden + scores + weights


def _layer_weights(share: Share) -> int:
    """Return the elements of one layer's matrices as they are used."""
    matrices = sum(share.used(spec) for spec in share.specs.values() if spec.kind == "matrix")
    return matrices // share.cfg.model.num_layers


def _probabilities(share: Share) -> int:
    """Return the bytes that attention keeps of its scores: exponentials in float32 and what multiplies the values.

    The blocked back end keeps the second only; kernels keep a float32 per row and head.
    """
    rows = share.rows * share.heads
    if not share.stored_scores:
        return 4 * rows * share.seq_len
    return rows * share.scores * (share.item if share.cfg.model.attention == "blocked" else 4 + share.item)


def _layer_bytes(share: Share) -> int:
    """Return the bytes that the backward pass of one layer adds to what is saved.

    The worse of two moments: in attention, its exponentials, probabilities and the gradients of both inputs; in the
    MLP, the recomputed hidden layer next to the exponentials that are recomputed before it.
    """
    model, item = share.cfg.model, share.item
    heads = share.tokens * share.heads * model.head_dim * item
    mlp = share.tokens * share.d_ff * item
    stream = share.tokens * model.d_model * item
    at_once = share.rows * share.heads * share.largest_scores if share.stored_scores else 0
    if share.cfg.model.remat == "none":
        return 4 * at_once + mlp + stream
    if model.attention == "blocked":
        attention = held = share.rows * share.heads * share.layer_scores * item
        attention += 4 * at_once
    else:
        held = 4 * at_once
        attention = (4 + item) * at_once
    around = 3 * (stream + heads)
    gathered = _layer_weights(share) * item
    return max(attention + around, held + RECOMPUTED_BY_ACTIVATION[model.activation] * mlp + around) + gathered
