"""What the fields of a recurrent model must satisfy: checks of `config.Config`, kept apart for their length."""

import dataclasses
from collections.abc import Iterator
from typing import Any

RATES = ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
"""The rates of a recurrent model, each None for `model.dropout`."""


def is_on(rate: Any) -> bool:
    """Return whether anything is dropped at a rate. It is at one that is an array: one program then runs at many."""
    return rate is not None and (not isinstance(rate, (int, float)) or rate > 0)


RECURRENT = ("cell", "dropout_kind", *RATES)
"""The fields of a model that only family `rnn` reads."""

SHARED = ("family", "head", "num_classes", "vocab_size", "num_layers", "d_model", "tie_embeddings", "final_softcap")
SHARED += ("dropout", "init_std", "dtype", "layers", "remat", "bias", "positions")
"""The fields that family `rnn` reads beside those; `bias` and `positions` have checks of their own."""


def problems(cfg: Any) -> Iterator[str]:
    """Yield one sentence for every field that the family does not read, or that contradicts another."""
    model, order = cfg.model, cfg.data.order
    if order == "contiguous" and cfg.data.weights:
        yield (
            f"data.weights={cfg.data.weights} mix shuffled rows, but data.order='contiguous' reads every source from "
            "end to end: leave one of them out"
        )
    if model.family != "rnn":
        for name in _changed(model, RECURRENT):
            yield f"model.{name}={getattr(model, name)!r} is for model.family='rnn', not {model.family!r}"
        return
    others = {field.name for field in dataclasses.fields(model)} - {*SHARED, *RECURRENT}
    for name in _changed(model, sorted(others)):
        yield f"model.{name}={getattr(model, name)!r} is not for model.family='rnn', which has no such thing"
    if model.positions != "none":
        yield f"model.positions={model.positions!r} is not for model.family='rnn', which reads tokens in order"
    if model.bias == "qkv":
        yield "model.bias='qkv' is not for model.family='rnn': take 'all' or 'none'"
    if model.remat not in ("none", "dots", "full"):
        yield f"model.remat={model.remat!r} is not for model.family='rnn': take 'none', 'dots' or 'full'"
    if model.dropout_kind == "naive":
        for name in ("word_dropout", "recurrent_dropout"):
            if getattr(model, name):
                yield f"model.{name}={getattr(model, name)} needs model.dropout_kind='variational', not 'naive'"


def _changed(model: Any, names: Any) -> Iterator[str]:
    """Yield the names of fields that are not at their default."""
    defaults = {field.name: field for field in dataclasses.fields(model)}
    for name in names:
        declared = defaults[name]
        factory: Any = declared.default_factory
        default = declared.default if factory is dataclasses.MISSING else factory()
        if getattr(model, name) != default:
            yield name
