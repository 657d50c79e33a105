"""What one device sends in a training step, from the layout: the collectives that the sharding asks for."""

from collections.abc import Iterator
from functools import partial

from bigjax.params import ParamSpec
from bigjax.preflight.plan.analytic import context as analytic_context
from bigjax.preflight.plan.analytic.share import Share
from bigjax.preflight.plan.traffic import Collective, Kind, sent_bytes

Sent = tuple[Kind, tuple[str, ...], int, float]
"""Kind, mesh axes, executions and bytes in one piece of each."""


def collectives(share: Share) -> list[Collective]:
    """Return one entry for each kind of collective and set of mesh axes, over all microbatches of a step.

    This is what the sharding asks for. Parameters and most gradients travel in the compute dtype. A gradient is reduced
    over a mesh axis at a time, fastest link first: between slices go only the parts that the devices of a slice hold
    apart. The compiler merges small collectives, so it counts fewer; it may sum a gradient whole and keep a part,
    which sends twice as much as a reduce-scatter. Scalars and what Muon's own products send are left out.
    """
    total: dict[tuple[Kind, tuple[str, ...]], tuple[int, float]] = {}
    parts = [_parameters(share), _loss(share), *map(_pipeline, share.stacks)]
    for stack in share.stacks:
        again = partial(_in_ticks, stack.ticks)
        transformer = [_tensor_parallel(stack), _beside(stack), analytic_context.sent(stack)]
        parts += map(again, [_recurrent(stack)] if share.cfg.model.kind == "rnn" else transformer)
    for part in parts:
        for kind, axes, count, whole in part:
            if not axes or not count:
                continue
            times = count * share.cfg.train.num_microbatches
            known, sent = total.get((kind, axes), (0, 0.0))
            moved = times * sent_bytes(kind, round(whole), share.ways(*axes))
            total[kind, axes] = known + times, sent + moved
    found = []
    for (kind, axes), (count, sent) in sorted(total.items()):
        # The next product waits for a tensor-parallel collective, and attention for what it needs of other parts of a
        # row unless that goes round, while a parameter can be gathered ahead of its use. The next tick of a pipeline
        # waits for half of what its stages send: what they have made.
        waits = "tensor" in axes or (axes == ("context",) and kind not in ("collective-permute", "all-reduce"))
        half = axes == ("stage",) and kind == "collective-permute"
        overlapped = 0 if waits else round(sent / 2 if half else sent)
        found.append(Collective(kind, axes, count, round(sent), overlapped))
    return found


def _parameters(share: Share) -> Iterator[Sent]:
    """Yield the gathers of parameters from where they are stored, and the reductions of their gradients over the batch.

    Rematerialised blocks are gathered again. The gradient of the output matrix is summed in float32, in which the loss
    forms it. A tied table is gathered once, but the gradient of its look-up is summed apart from that.
    """
    remat = share.cfg.model.remat != "none"
    output = "embed/tokens" if share.cfg.model.tie_embeddings else "head/tokens"
    for name, spec in share.specs.items():
        calls = spec.shape[0] if spec.stacked else 1
        elements = share.used(spec) // calls
        if spec.stacked:  # in every tick, of a stage's layers
            calls = calls * share.stacks[0].ticks // share.stacks[0].runs
        if share.is_gathered(spec):
            again = remat and "blocks/" in name
            yield "all-gather", share.layout.params["embed"], calls * (2 if again else 1), elements * share.item
        if name == output and share.loss_len:
            yield from _reduction(share, spec, calls, 4 * elements)
        if name == "embed/tokens":
            yield from _look_up(share, spec)
        elif name != output:
            yield from _reduction(share, spec, calls, elements * share.item)


def _look_up(share: Share, spec: ParamSpec) -> Iterator[Sent]:
    """Yield what a token table split by vocabulary costs where it is read, and the sum of that gradient.

    Every device looks up what it has, and the results are summed. With the sequence split too, the compiler gathers
    the table instead, and sums the gradient of all of it over the batch and the sequence.
    """
    vocab, table = share.layout.over("vocab"), share.used(spec) * share.item
    if vocab and share.shard_sequence:
        yield "all-gather", vocab, 1, table * share.ways(*vocab)
        yield "all-reduce", (*share.layout.over("batch", "seq"), *vocab), 1, table * share.ways(*vocab)
        return
    if vocab:
        looked_up = sum(stack.tokens for stack in share.stacks)
        yield "all-reduce", vocab, 1, looked_up * share.cfg.model.d_model * share.item
    yield from _reduction(share, spec, 1, table)


def _reduction(share: Share, spec: ParamSpec, calls: int, whole: float) -> Iterator[Sent]:
    """Yield the sum of a gradient over the devices that split the batch or its rows: to where it is stored."""
    used = (*_axes_of(share, spec), *(["stage"] if spec.stacked else []))
    axes = tuple(axis for axis in share.layout.over("batch", "seq") if axis not in used)
    if stored := tuple(axis for axis in share.layout.params["embed"] if axis in axes):
        if share.is_gathered(spec):
            yield "reduce-scatter", stored, calls, whole
            whole /= share.ways(*stored)
        else:
            yield "all-reduce", stored, calls, whole
    if together := tuple(axis for axis in ("data", "expert") if axis in axes):
        yield "all-reduce", together, calls, whole
    # Between slices, or stages, every device sends its own part of what the devices of its slice hold alike.
    alike = share.ways(*together)
    for axis in ("stage", "slice"):
        if axis in axes:
            yield "all-reduce", (axis,), calls, whole / alike


def _in_ticks(ticks: int, sent: Iterator[Sent]) -> Iterator[Sent]:
    for kind, axes, count, whole in sent:
        yield kind, axes, count * ticks, whole


def _pipeline(stack: Share) -> Iterator[Sent]:
    """Yield what the stages of a pipeline send each other: in every tick, and back in the backward pass, what they have
    made and a place of the stream; with repeats once a step their parameters in float32, and back their gradients."""
    if stack.runs == 1:
        return
    stage, layout = ("stage",), stack.layout
    residual = stack.rows * stack.residual_len * stack.cfg.model.d_model * stack.item
    yield "collective-permute", stage, 2 * 2 * stack.ticks, residual
    if layout.pipeline_repeats > 1:
        moved = 4 * sum(stack.stored(spec) for spec in stack.specs.values())
        yield "collective-permute", stage, 2, moved


def _axes_of(share: Share, spec: ParamSpec) -> tuple[str, ...]:
    """Return the mesh axes that a parameter stays split over while it is used."""
    return share.layout.over(*spec.axes)


def _tensor_parallel(share: Share) -> Iterator[Sent]:
    """Yield the sums over `tensor` of a block's two outputs and two input gradients (Shoeybi et al. 2020, section 3).

    With `mesh.shard_sequence` each is a reduce-scatter whose other half, an all-gather, comes before the next product
    (Korthikanti et al. 2022, section 4.2.2). The sum of a block's last output is not formed again for the backward
    pass, and no gather is saved. Cross-attention is one more half, and sums a gradient of what it attends to.
    """
    heads, mlp = share.layout.over("heads"), share.layout.over("mlp")
    axes = heads or mlp
    layers, model = share.num_layers, share.cfg.model
    cross = bool(share.memory_len)
    whole = share.tokens * model.d_model * share.item
    policy, _, listed = share.cfg.model.remat.partition(":")
    remat = policy != "none"
    again = policy in ("full", "offload") or (policy == "save" and "attn_out" not in listed.split(","))
    sums = layers * (4 + again) + layers * cross * (2 + again)
    yield "all-reduce", axes, cross * layers, share.memory_tokens * model.d_model * share.item
    if not share.shard_sequence:
        yield "all-reduce", axes, sums, whole
        return
    yield "reduce-scatter", axes, sums, whole
    yield "all-gather", axes, layers * (2 + cross) * (2 + remat), whole


def _beside(stack: Share) -> Iterator[Sent]:
    """Yield what goes to experts and back, and the sum of the gradient of a bias on scores, in float32.

    With a capacity two all-to-alls for each pass, and again where a layer is rematerialised. Without one, an all-gather
    of all tokens that the devices along `expert` have and a reduce-scatter of the results, and the reverse backwards
    (`models.moe_exchange`).
    """
    model = stack.cfg.model
    if model.positions == "relative":
        bias = 4 * stack.heads * stack.seq_len**2
        yield "all-reduce", stack.layout.over("batch"), stack.num_layers, bias
    expert, layers, again = stack.layout.over("experts"), stack.sparse_layers, model.remat != "none"
    if model.moe.capacity_factor is not None:
        yield "all-to-all", expert, layers * (4 + 2 * again), stack.places * model.d_model * stack.item
        return
    together = stack.tokens * stack.ways(*expert) * model.d_model * stack.item
    yield "all-gather", expert, layers * (2 + again), together
    yield "reduce-scatter", expert, layers * 2, together


def _recurrent(stack: Share) -> Iterator[Sent]:
    """Yield what recurrent layers send over `tensor`.

    At every step the state is gathered for the next product, and its gradient summed to where it goes on; that of a
    layer's input is summed once for all steps.
    """
    model, steps = stack.cfg.model, stack.num_layers * stack.seq_len
    again = model.remat == "full"
    axes, state = stack.layout.over("mlp"), 4 * stack.rows * model.d_model
    yield "all-gather", axes, steps * (1 + again), state
    yield "reduce-scatter", axes, steps, state
    yield "all-reduce", axes, stack.num_layers, stack.tokens * model.d_model * stack.item


def _loss(share: Share) -> Iterator[Sent]:
    """Yield what the loss costs: the last hidden states, the softmax over a split vocabulary, and their gradient.

    That gradient is summed in float32, or in the compute dtype by the chunked loss, which forms it itself.
    """
    vocab, sequence = share.layout.over("vocab"), share.shard_sequence
    chunks, elements = share.cfg.train.num_loss_chunks, share.loss_tokens * share.cfg.model.d_model
    if sequence:
        yield "all-gather", sequence, 1, elements * share.item
    if not vocab or not elements:
        return
    yield "all-reduce", vocab, 3 * chunks, 4 * share.loss_tokens / chunks  # maximum, sum of exponentials, label's logit
    if chunks > 1:
        yield "all-reduce", vocab, chunks, elements * share.item / chunks
    else:
        yield "reduce-scatter" if sequence else "all-reduce", vocab, 1, 4 * elements
