"""What attention over rows that the mesh axis `context` splits holds and sends; see `models.attention.context`."""

from collections.abc import Iterator
from math import lcm
from typing import Any

from bigjax.models.attention.ring import MAX_BLOCK
from bigjax.preflight.plan.analytic.share import Share


def layer_bytes(stack: Share) -> int:
    """Return the bytes that the backward pass of one layer adds for what it has of the keys and values of others.

    Gathered, those of the whole row and their gradients. In a ring, those on the way beside those at hand, in float32
    the gradients of both and of the queries, and a block of scores. Between two all-to-alls, queries, keys, values and
    what was mixed once more, and their gradients.
    """
    exchange, item, size = stack.exchange, stack.item, stack.cfg.model.head_dim
    keys_and_values = 2 * stack.tokens * stack.attended_kv_heads * size
    heads = stack.tokens * stack.heads * size
    if exchange == "gather":
        return 2 * keys_and_values * stack.ways("context") * item
    if exchange == "ring":
        block = min(MAX_BLOCK, stack.seq_len // 2)
        scores = stack.rows * stack.heads * block * block * (2 * 4 + item)
        return keys_and_values * (item + 2 * 4) + 4 * heads + scores
    if exchange == "all_to_all":
        return 2 * (2 * heads + keys_and_values * _repeats(stack)) * item
    return 0


def _repeats(stack: Share) -> int:
    """Return how often each kv head is repeated until `context` divides them."""
    kv_heads = stack.attended_kv_heads
    return lcm(kv_heads, stack.ways("context")) // kv_heads


def sent(stack: Share) -> Iterator[tuple[Any, tuple[str, ...], int, float]]:
    """Yield what a stack's layers send over `context`, as `traffic.Sent` has it.

    Backwards each exchange goes the other way round; a ring goes round twice as far, with keys and values and, in
    float32, with their gradients. A rematerialised layer repeats those of the forward pass.
    """
    axes, layers, item, size = ("context",), stack.num_layers, stack.item, stack.cfg.model.head_dim
    ways, exchange = stack.ways("context"), stack.exchange
    kind, _, listed = stack.cfg.model.remat.partition(":")
    forward = 1 if kind == "none" or (kind == "save" and "attn_mixed" in listed.split(",")) else 2
    kv = stack.tokens * stack.attended_kv_heads * size * item
    heads = stack.tokens * stack.heads * size * item
    if exchange == "gather":
        yield "all-gather", axes, layers * 2 * forward, kv * ways
        yield "reduce-scatter", axes, layers * 2, kv * ways
    elif exchange == "ring":
        yield "collective-permute", axes, layers * 2 * (forward + 1) * (ways - 1), kv
        yield "collective-permute", axes, layers * 2 * ways, kv * 4 / item
    elif exchange == "all_to_all":
        yield "all-to-all", axes, layers * 2 * (forward + 1), heads
        yield "all-to-all", axes, layers * 2 * (forward + 1), kv * _repeats(stack)
    if stack.sparse_layers:  # what the router says of each token, in float32
        logits = 4 * stack.tokens * stack.cfg.model.moe.num_experts * ways
        yield "all-gather", axes, stack.sparse_layers * forward, logits
        yield "reduce-scatter", axes, stack.sparse_layers, logits
