"""What the fields of an encoder-decoder's run must satisfy together."""

from collections.abc import Iterator
from math import gcd
from typing import Any

POSITIONS = ("sinusoidal", "relative", "none")
"""The positions that an encoder-decoder can have."""


def problems(cfg: Any) -> Iterator[str]:
    """Yield one sentence for every field that contradicts the family, of this family or not."""
    model, data, train = cfg.model, cfg.data, cfg.train
    if model.positions == "sinusoidal" and model.d_model % 2:
        yield (
            f"model.d_model={model.d_model} is odd, but model.positions='sinusoidal' pairs a sine with each cosine: "
            f"set model.d_model={model.d_model + 1}"
        )
    if model.family != "encdec":
        yield from _only_for_encdec(cfg)
        return
    if model.positions not in POSITIONS:
        yield f"model.family='encdec' has model.positions={' or '.join(map(repr, POSITIONS))}, not {model.positions!r}"
    if not data.target_len:
        yield "data.target_len=0: model.family='encdec' needs the length of the rows that it writes"
    elif data.target_len % train.loss_chunks:
        yield (
            f"data.target_len={data.target_len} is not divisible by train.loss_chunks={train.loss_chunks}: set "
            f"train.loss_chunks={gcd(data.target_len, train.loss_chunks)}"
        )
    if min(data.seq_len, data.target_len or 2) < 2:
        yield f"data.seq_len={data.seq_len} or data.target_len={data.target_len} has no room for a token before the end"
    if model.positions == "relative":
        yield from _bucket_problems(model.relative_buckets, model.relative_max_distance)


def _only_for_encdec(cfg: Any) -> Iterator[str]:
    model, name = cfg.model, cfg.model.family
    for field, given in (
        ("model.num_decoder_layers", model.num_decoder_layers),
        ("data.target_len", cfg.data.target_len),
        ("model.scale_logits", model.scale_logits),
        ("model.positions", model.positions if model.positions == "relative" else None),
    ):
        if given:
            yield f"{field}={given!r} is for model.family='encdec', not {name!r}"


def _bucket_problems(buckets: int, longest: int) -> Iterator[str]:
    if buckets % 2:
        yield f"model.relative_buckets={buckets} is odd, but half of them are for the keys after a query"
    if longest <= buckets // 2:
        yield (
            f"model.relative_max_distance={longest} must be above half of model.relative_buckets={buckets}, "
            "the distances that have buckets of their own"
        )
