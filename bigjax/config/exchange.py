"""How the parts of a row that lie on the mesh axis `context` attend to each other, and what each way asks of a run.

Between two exchanges of `all_to_all` the rows are whole and the heads are split (Jacobs et al. 2023). `gather` brings
the keys and values of the row to each device (Grattafiori et al. 2024, section 3.3.2). With `ring` they go round from
device to device, and no device ever holds those of more than two (Liu et al. 2023).
"""

from collections.abc import Iterator
from math import gcd, lcm
from typing import Any

RING_BACKENDS = ("reference", "blocked")
"""The values of `model.attention` that `ring`, whose products are its own, can stand for: plain operations."""

GATHER_BACKENDS = ("reference", "xla", "cudnn", "splash")
"""Those that attend from a part of the queries to all keys."""

LARGE_SCORES = 2**30
"""Bytes of the scores of one row on a device above which `auto` does not store them."""

KERNEL_BLOCK = 128
"""Positions of the smallest block of the splash kernel, of which each device's queries must be a multiple."""


def choose(model: Any, exchange: str, seq_len: int, ways: int, split: int) -> str:
    """Return how rows split `ways` ways are attended to, where the heads are split `split` ways; `auto` is resolved.

    By heads and bytes: all-to-all where it can be and sends no more than the keys and values of the row; else the ring,
    or `gather` where `model.attention` is a kernel. The ring, too, where scores that others store are large.
    """
    if exchange != "auto":
        return exchange
    scores = 4 * seq_len * seq_len // ways * model.num_heads // split
    plain = model.attention in ("auto", *RING_BACKENDS)
    large = plain and scores > LARGE_SCORES
    able = not model.num_heads // split % ways and not large
    if able and sent(model, "all_to_all", ways, split) <= sent(model, "gather", ways, split):
        return "all_to_all"
    return "ring" if plain else "gather"


def sent(model: Any, exchange: str, ways: int, split: int) -> float:
    """Return the numbers that a device sends for each of its tokens in the forward pass of a layer's attention."""
    heads, kv_heads = heads_of_device(model, split)
    if exchange == "all_to_all":
        return (2 * heads + 2 * lcm(kv_heads, ways)) * model.head_dim * (ways - 1) / ways
    return 2 * kv_heads * model.head_dim * (ways - 1)


def heads_of_device(model: Any, split: int) -> tuple[int, int]:
    """Return the heads and kv heads of a device where the mesh splits heads `split` ways; too few kv heads repeat."""
    return model.num_heads // split, lcm(model.num_kv_heads, split) // split


def piece(seq_len: int, exchange: str, ways: int) -> int:
    """Return how many tokens of a row lie side by side on a device, which has two such pieces of a row in balance."""
    return seq_len // (ways if exchange == "all_to_all" else 2 * ways)


def problems(cfg: Any, exchange: str, ways: int, split: int) -> Iterator[str]:
    """Yield what keeps the rows of `cfg` from being split `ways` ways, one sentence each.

    Args:
      exchange: as `choose` returns it. split: how many ways the mesh splits heads.
    """
    model, data, mesh = cfg.model, cfg.data, f"mesh.context={ways}"
    how = f"mesh.context_exchange={exchange!r}"
    if model.random:
        drawn = f"model.dropout={model.dropout}" if model.dropout else "what model.moe draws"
        yield f"{mesh}: {drawn} is drawn for whole rows: set it to 0 and the router to 'topk', or mesh.context=1"
    if exchange == "all_to_all" and (heads := model.num_heads // split) % ways:
        on_each = f"{heads} heads" + (f" ({model.num_heads} over mesh.tensor={split})" if split > 1 else "")
        yield f"{how} splits {on_each}, which are not divisible by {mesh}: set mesh.context_exchange='gather' or 'ring'"
    for name, able in (("ring", RING_BACKENDS), ("gather", GATHER_BACKENDS)):
        if exchange == name and model.attention not in ("auto", *able):
            others = "'all_to_all' or " + ("'gather'" if name == "ring" else "'ring'")
            yield (
                f"{how} cannot be with model.attention={model.attention!r}: set model.attention to "
                f"{' or '.join(map(repr, able))}, or mesh.context_exchange to {others}"
            )
    step = ways if exchange == "all_to_all" else 2 * ways
    if data.seq_len % step:
        near = max(round(data.seq_len / step), 1) * step
        pieces = mesh if step == ways else f"2 * {mesh}, two pieces of a row on each device"
        yield f"data.seq_len={data.seq_len} is not divisible by {pieces}: set data.seq_len={near}"
        return
    own = data.seq_len // ways
    if own % cfg.train.num_loss_chunks:
        yield (
            f"the {own} tokens of a row that {mesh} leaves on a device are not divisible by train.loss_chunks="
            f"{cfg.train.loss_chunks}: set train.loss_chunks={gcd(own, cfg.train.num_loss_chunks)}"
        )
    if exchange == "gather" and model.attention == "splash" and own % KERNEL_BLOCK:
        yield (
            f"model.attention='splash' needs a multiple of {KERNEL_BLOCK} tokens of a row on each device, not the "
            f"{own} that {mesh} leaves of data.seq_len={data.seq_len}"
        )
    together = piece(data.seq_len, exchange, ways)
    group = model.moe.group_size or data.seq_len
    if model.moe.num_experts and model.moe.capacity_factor is not None and together % group:
        yield (
            f"model.moe.capacity_factor={model.moe.capacity_factor} counts the tokens of groups of {group}, which "
            f"{mesh} tears apart: set model.moe.group_size={gcd(together, group)}, or model.moe.capacity_factor=None"
        )
