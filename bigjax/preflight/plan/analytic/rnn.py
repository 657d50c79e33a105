"""What a recurrent layer keeps and sends, for the analytic model: read from programs of the TPU compiler."""

from bigjax.models.parts.recurrence import CELLS
from bigjax.models.rnn import GATES
from bigjax.preflight.plan.analytic.share import Share


def saved_by_layer(share: Share) -> int:
    """Return the bytes that one layer saves: its input, the states as they are multiplied, and what a step keeps."""
    stream = share.tokens * share.cfg.model.d_model * share.item
    if share.cfg.model.remat == "full":
        return stream
    if share.cfg.model.remat == "dots":  # the parts of the gates from the input and, in float32, from the state
        return stream + GATES[share.cfg.model.own.cell] * share.tokens * split_width(share) * (4 + share.item)
    return 2 * stream + _kept(share) + _weights(share)


def layer_bytes(share: Share) -> int:
    """Return the bytes that the backward pass of one layer adds: what its steps keep, and the gradients of the gates.

    Those are there in the order of the steps, and once more in that of the tokens; where a gate's two parts go into
    sums of their own, so are the gradients of the sums.
    """
    cell, part = CELLS[share.cfg.model.own.cell], share.tokens * split_width(share) * share.item
    gradients = 4 * len(cell.from_input) + (0 if cell.from_input == cell.from_state else cell.num_sums)
    return _kept(share) + gradients * part + (_weights(share) if share.cfg.model.remat == "full" else 0)


def split_width(share: Share) -> int:
    """Return the part of the model's width that a device forms gates for."""
    return share.cfg.model.d_model // share.ways(*share.layout.over("mlp"))


def _kept(share: Share) -> int:
    """Return the bytes of the sums that the steps of a layer form, and of its memory, in float32."""
    return 4 * (CELLS[share.cfg.model.own.cell].num_sums + 1) * share.tokens * split_width(share)


def _weights(share: Share) -> int:
    matrices = sum(share.used(spec) for spec in share.specs.values() if spec.kind == "matrix")
    return matrices // share.num_layers * share.item
