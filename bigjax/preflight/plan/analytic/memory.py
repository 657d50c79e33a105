"""Bytes of memory that a training step holds on one device, from first principles.

The state is exact. The rest follows which arrays are alive at four moments, of which the worst counts: when the loss
has its logits, when the backward pass works on one layer, when a microbatch's gradient is added to the others, and when
the optimizer has all gradients. Which arrays those are was read from programs of the TPU compiler;
`benchmarks/analytic_memory.py` measures the error.
"""

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp

from bigjax.config import Config
from bigjax.models.parts.matrices import axes_of
from bigjax.params import ParamSpec
from bigjax.preflight.plan.analytic import context as analytic_context
from bigjax.preflight.plan.analytic import rnn as analytic_rnn
from bigjax.preflight.plan.analytic.share import Share
from bigjax.train import optimizers

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1, "lion": 1}
"""Arrays of a parameter's size that an optimizer keeps; Adafactor and Muon depend on the parameter."""

ADAFACTOR_LEAST_SIZE = 128
"""Optax factors second moments where the two largest axes have at least this size (Shazeer & Stern 2018)."""

SAVED_BY_ACTIVATION = {"gelu_tanh": 5, "gelu": 4, "swiglu": 6, "geglu": 7, "relu": 2, "relu_squared": 3}
"""Arrays of the MLP's width that a layer keeps when nothing is rematerialised: JAX saves the value of every operation
that a derivative needs, the input of the last matrix product included."""

RECOMPUTED_BY_ACTIVATION = {"gelu_tanh": 2, "gelu": 2, "swiglu": 3, "geglu": 3, "relu": 1, "relu_squared": 2}
"""Those that exist while one layer is recomputed: the compiler fuses the others into what uses them."""

SPREAD_OF_FOUR_LOOPS = 1.4
"""Room that the arrays of an encoder-decoder take, to their bytes, where the two loops forwards keep all that the two
backwards need: the TPU compiler leaves gaps between so many arrays (measured on two programs)."""


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
        moments = MOMENTS[name] if name in MOMENTS else _moments(share)
        elements = round(moments * sum(share.stored(spec) for spec in share.specs.values()))
    return 4 * elements + average


def _moments(share: Share) -> float:
    """Return how many arrays of a parameter's size the user's own optimizer keeps, on average, by its shapes."""
    params = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), share.tree)
    state = jax.eval_shape(optimizers.build(share.cfg.optim, share.tree, share.cfg.train.steps).init, params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state, params)]
    return sizes[0] / sizes[1]


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
    gradients = params_bytes(share)
    accumulated = gradients if share.cfg.train.num_microbatches > 1 else 0
    late = _logits(share) if _logits_outlive_loss(share) else 0
    saved = round(_spread(share) * saved_bytes(share))
    moments = [Peak("loss", accumulated, saved, _loss_bytes(share)), Peak("update", gradients, 0, 0)]
    done, left = 0, share.stacks
    while left:
        # The last stack comes first. The gradients of its layers are stacked in the end, and for a moment there twice;
        # a loop over the layers of a dense decoder writes them in place.
        own = 4 * sum(share.stored(spec) for spec in left[-1].specs.values())
        done += own
        in_place = share.cfg.model.layers != "unroll" and _is_dense_decoder(share.cfg) and left[-1].ticks == 1
        again = 0 if in_place else done
        around = late + (0 if late else _head_gradient(share)) + 2 * _stream(left[-1]) + again
        around += _pipeline_bytes(share, left[-1])
        saved = round(_spread(share) * sum(_saved_by_stack(stack) for stack in left))
        moments.append(Peak("backward", accumulated + done, saved, around + _layer_bytes(left[-1])))
        left = left[:-1]
    if accumulated:
        # The sum so far, what is added to it, and the new sum.
        moments.append(Peak("accumulate", 3 * gradients, 0, late + 2 * _stream(share)))
    return max(moments, key=lambda moment: moment.total)


def _spread(share: Share) -> float:
    """Return how much more room saved arrays take than they have bytes, for the gaps between them."""
    four_loops = share.cfg.model.kind == "encdec" and share.cfg.model.layers == "scan"
    return SPREAD_OF_FOUR_LOOPS if four_loops and share.cfg.model.remat == "none" else 1.0


def _is_dense_decoder(cfg: Config) -> bool:
    return cfg.model.kind == "decoder" and not cfg.model.moe.num_experts


def _stream(share: Share) -> int:
    return share.tokens * share.cfg.model.d_model * share.item


def _logits(share: Share) -> int:
    """Return the bytes of the logits that exist at the same time."""
    return 4 * share.loss_tokens // share.cfg.train.num_loss_chunks * share.vocab


def _output(share: Share) -> int:
    """Return the elements of the output matrix, 0 where the model predicts no tokens."""
    return share.vocab * share.cfg.model.d_model if share.loss_len else 0


def _head_gradient(share: Share) -> int:
    return _output(share) * (4 if share.cfg.model.tie_embeddings or _chunked(share) else share.item)


def _loss_bytes(share: Share) -> int:
    """Return what the loss needs.

    It reads the output matrix in the compute dtype and the last hidden states in float32, too; in pieces, it adds the
    gradient of the matrix up in float32, keeps that of the hidden states, and holds the sum over the devices that split
    the batch in the compute dtype.
    """
    width, output = share.cfg.model.d_model, _output(share)
    stream = share.loss_tokens * width * share.item
    loss = _logits(share) + output * share.item + 4 * share.loss_tokens * width + 2 * stream
    # The buffers of the experts in the loop before are not used again for the logits.
    sparse = [stack for stack in share.stacks if stack.sparse_layers]
    experts = max((_expert_buffers(stack) for stack in sparse), default=0)
    summed = output * share.item if share.layout.over("batch", "seq") else 0
    return loss + experts + (4 * output + summed + stream if _chunked(share) else 0)


def _chunked(share: Share) -> bool:
    return share.cfg.train.num_loss_chunks > 1


def _logits_outlive_loss(share: Share) -> bool:
    """Whether the gradient of the output matrix is formed after the layers' backward pass.

    The compiler forms the two parts of a tied table's gradient together, when the look-up's is known, unless one has to
    be summed over devices. Beside what recurrent layers keep, it does not hurry with the logits either.
    """
    if share.cfg.model.kind == "rnn":
        return share.cfg.model.remat != "full" and not _chunked(share)
    return share.cfg.model.tie_embeddings and not _chunked(share) and not share.layout.over("batch", "seq")


def _pipeline_bytes(share: Share, stack: Share) -> int:
    """Return what stages hold besides: the stream as it is and as it becomes, and with repeats their runs of layers in
    turn, in float32, with their gradients."""
    if stack.runs == 1:
        return 0
    runs = 4 * sum(stack.stored(spec) for spec in stack.specs.values())
    return 2 * _stream(share) + (2 * runs if stack.layout.pipeline_repeats > 1 else 0)


def saved_bytes(share: Share) -> int:
    """Return the bytes that the forward pass of one microbatch leaves in device memory for the backward pass."""
    return sum(_saved_by_stack(stack) for stack in share.stacks)


def _saved_by_stack(stack: Share) -> int:
    """Return the bytes that a stack's layers save; and what it attends to, once for all of them."""
    if stack.cfg.model.kind == "rnn":
        return stack.num_layers * analytic_rnn.saved_by_layer(stack)
    memory = stack.memory_tokens * stack.cfg.model.d_model * stack.item
    return stack.ticks * stack.num_layers * _saved_by_layer(stack) + memory


def _saved_by_layer(share: Share) -> int:
    """Return the bytes that one layer saves under its remat policy, in the mean; its input is always among them."""
    model, item, tokens = share.cfg.model, share.item, share.tokens
    cross = bool(share.memory_len)
    halves = 2 + cross
    residual = share.rows * share.residual_len * model.d_model * item
    whole = tokens * model.d_model * item
    heads = (1 + cross) * tokens * share.heads * model.head_dim * item
    read = tokens + share.memory_tokens
    qkv = heads + 2 * read * share.kv_heads * model.head_dim * item
    kind, _, listed = model.remat.partition(":")
    if kind in ("full", "offload"):
        return residual
    # Without a norm after it, the result of the last product of a layer is in no derivative.
    mlp_out = residual if share.normed_outputs else 0
    if kind == "dots":  # q, k, v, the outputs of attention and the one or two products into the MLP
        return halves * residual + qkv + _over_halves(share, 2 if share.gated else 1, products=True) + mlp_out
    if kind == "save":
        hidden = _over_halves(share, 1)
        sizes = {
            "qkv": qkv,
            "attn_mixed": heads,
            "attn_out": (1 + cross) * residual,
            "mlp_hidden": hidden,
            "mlp_out": mlp_out,
        }
        return residual + sum(sizes[name] for name in set(listed.split(",")))
    attended = 2 * heads + 2 * read * share.attended_kv_heads * model.head_dim * item
    if model.layers == "unroll":
        # One program: what is cheap to compute again is fused into its use, so norms, activations and casts of weights
        # or probabilities are not kept.
        gathered = _layer_weights(share) * item if share.layout.params["embed"] else 0
        scores = 4 * share.rows * share.heads * share.scores if share.stored_scores else 0
        hidden = _over_halves(share, 2 if share.gated else 1)
        return halves * residual + attended + hidden + halves * mlp_out + scores + gathered
    # Across the loop every array is kept as the forward pass wrote it, the gathered or cast weights included.
    scores = _probabilities(share)
    again = 0 if model.attention in ("reference", "xla") else heads  # a kernel keeps its output in its own layout
    weights = _layer_weights(share) * item if item == 2 or share.layout.params["embed"] else 0
    hidden = _over_halves(share, SAVED_BY_ACTIVATION[model.activation])
    return halves * (residual + mlp_out + whole) + attended + again + hidden + scores + weights


def _over_halves(share: Share, arrays: int, products: bool = False) -> int:
    """Return the bytes of so many arrays of the MLP's width, in the mean over dense layers and those with experts.

    Of a layer with experts also what is sent to them, what they return, and its copy in the order of the tokens.
    `products`: keep results of ordinary matrix products only, which those of experts without a capacity are not.
    """
    dense = share.num_layers - share.sparse_layers
    moe = share.cfg.model.moe
    kept = 0 if products and moe.capacity_factor is None else share.sparse_layers
    sparse = _expert_hidden(share, arrays) + (0 if products else 3 * _sent_to_experts(share))
    return (dense * arrays * share.tokens * share.d_ff * share.item + kept * sparse) // share.num_layers


def _expert_hidden(share: Share, arrays: int) -> int:
    """Return the bytes of so many arrays of the experts' width on this device."""
    width = (share.cfg.model.moe.d_ff or share.cfg.model.d_ff) // share.ways(*share.layout.over("mlp"))
    return arrays * share.places * width * share.item


def _expert_buffers(share: Share) -> int:
    """Return the bytes that the experts of one layer need while they are recomputed."""
    arrays = 1 if share.cfg.model.remat == "none" else RECOMPUTED_BY_ACTIVATION[share.cfg.model.activation]
    return _expert_hidden(share, arrays) + 3 * _sent_to_experts(share)


def _sent_to_experts(share: Share) -> int:
    return share.places * share.cfg.model.d_model * share.item


def _layer_weights(share: Share) -> int:
    """Return the elements of one layer's matrices as they are used."""
    matrices = sum(share.used(spec) for spec in share.specs.values() if spec.kind == "matrix")
    return matrices // share.num_layers


def _probabilities(share: Share) -> int:
    """Return the bytes that attention keeps of its scores: exponentials in float32 and what multiplies the values.

    The blocked back end keeps the second only; kernels keep a float32 per row and head. Dropout keeps a mask.
    """
    rows = share.rows * share.heads
    if not share.stored_scores:
        return 4 * rows * share.seq_len
    kept = share.item if share.cfg.model.attention == "blocked" else 4 + share.item
    return rows * share.scores * (kept + (1 if share.cfg.model.dropout else 0))


def _layer_bytes(share: Share) -> int:
    """Return the bytes that the backward pass of one layer adds to what is saved.

    The worse of two moments: in attention, its exponentials, probabilities and the gradients of both inputs; in the
    MLP, the recomputed hidden layer next to the exponentials that are recomputed before it. In all but dense decoders
    they overlap; norms after a half work in float32, and so does the gradient of a bias on scores.
    """
    model, item = share.cfg.model, share.item
    if model.kind == "rnn":
        return analytic_rnn.layer_bytes(share)
    heads = share.tokens * share.heads * model.head_dim * item
    stream = _stream(share)
    sparse, dense = share.sparse_layers, share.num_layers - share.sparse_layers
    arrays = 1 if model.remat == "none" else RECOMPUTED_BY_ACTIVATION[model.activation]
    # Both kinds of layers stand in one period of the loop.
    mlp = arrays * share.tokens * share.d_ff * item if dense else 0
    mlp += _expert_buffers(share) if sparse else 0
    at_once = share.rows * share.heads * share.largest_scores if share.stored_scores else 0
    if model.remat == "none":
        return 4 * at_once + mlp + stream
    if model.attention == "blocked" and share.stored_scores:
        attention = held = share.rows * share.heads * share.layer_scores * item
        attention += 4 * at_once
    else:
        held = 4 * at_once
        attention = (4 + item) * at_once
    around = 3 * (stream + heads) + analytic_context.layer_bytes(share)
    gathered = _layer_weights(share) * item
    if not _is_dense_decoder(share.cfg):
        normed = 2 * 4 * share.tokens * model.d_model if share.normed_outputs else 0
        bias = 2 * 4 * share.heads * share.seq_len**2 if model.positions == "relative" else 0
        return attention + mlp + around + gathered + normed + bias
    return max(attention + around, held + mlp + around) + gathered
