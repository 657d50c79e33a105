"""What a recurrent layer keeps and sends, for the analytic model: read from programs of the TPU compiler."""

from bigjax.models.rnn import GATES
from bigjax.preflight.analytic_share import Share

SAVED_BY_CELL = {"lstm": 11, "gru": 9}
"""Float32 arrays of the model's width that a layer keeps of each token: JAX saves the value of every operation of a
step that a derivative needs."""


def saved_by_layer(share: Share) -> int:
    """Return the bytes that one layer saves: its input, the states as they are multiplied, and what a step keeps."""
    stream = share.tokens * share.cfg.model.d_model * share.item
    if share.cfg.model.remat == "full":
        return stream
    if share.cfg.model.remat == "dots":  # the parts of the gates from the input and, in float32, from the state
        return stream + GATES[share.cfg.model.cell] * share.tokens * split_width(share) * (4 + share.item)
    return 2 * stream + _kept(share) + _weights(share)


def layer_bytes(share: Share) -> int:
    """Return the bytes that the backward pass of one layer adds: what its steps keep, and the gradients of the gates.

    Those are there in the order of the steps, and once more in that of the tokens.
    """
    gates = GATES[share.cfg.model.cell] * share.tokens * split_width(share) * share.item
    return _kept(share) + 4 * gates + (_weights(share) if share.cfg.model.remat == "full" else 0)


def split_width(share: Share) -> int:
    """Return the part of the model's width that a device forms gates for."""
    return share.cfg.model.d_model // share.ways(*share.layout.over("mlp"))


def _kept(share: Share) -> int:
    return 4 * SAVED_BY_CELL[share.cfg.model.cell] * share.tokens * split_width(share)


def _weights(share: Share) -> int:
    matrices = sum(share.used(spec) for spec in share.specs.values() if spec.kind == "matrix")
    return matrices // share.num_layers * share.item
