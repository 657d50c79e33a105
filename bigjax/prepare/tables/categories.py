"""Categories as numbers, those that the training side has, by scikit-learn's encoders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bigjax.config.fields import bounded
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Arrays, Dropped, Fitted, Record
from bigjax.prepare.tables import columns


@dataclass(frozen=True)
class Categories:
    """Which columns, and how."""

    columns: tuple[str, ...] = ()
    """The columns that are encoded."""
    kind: Literal["ordinal", "onehot"] = "ordinal"
    """`ordinal`: a whole number, -1 for a category not trained on; `onehot`: a list of 0 and 1, then all 0."""
    min_count: int = bounded(1, minimum=1)
    """Training records that a category has at least; rarer ones are one category together, after all others."""


def _combine(observed: list[Arrays], options: Categories, cfg) -> Arrays:
    from sklearn.preprocessing import OrdinalEncoder

    del cfg
    found = {}
    for name, values in columns.gathered(observed).items():
        column = np.array([[_text(value, name)] for value in values], dtype=object)
        encoder = OrdinalEncoder(min_frequency=options.min_count if options.min_count > 1 else None).fit(column)
        names = [str(value) for value in encoder.categories_[0]]
        codes = encoder.transform(np.array([[each] for each in names], dtype=object))[:, 0].astype(int)
        found[name] = dict(zip(names, codes.tolist(), strict=True))
    return columns.stored(found)


def _text(value: object, column: str) -> str:
    if columns.is_missing(value):
        raise PrepareError(f"column {column!r} has no value here: put the step `missing` before this one")
    return str(value)


def _build(options: Categories, cfg, state: Arrays) -> Callable[[int, Record], Record | Dropped]:
    del cfg
    learnt = columns.learnt(state)
    sizes = {name: max(codes.values()) + 1 for name, codes in learnt.items()}

    def apply(place: int, record: Record) -> Record | Dropped:
        del place
        changed = dict(record)
        for name, codes in learnt.items():
            code = codes.get(_text(columns.value_of(record, name), name), -1)
            changed[name] = code if options.kind == "ordinal" else [int(i == code) for i in range(sizes[name])]
        return changed

    return apply


def _observe(options: Categories, cfg) -> columns.Values:
    del cfg
    return columns.Values(columns.named_columns(options, "categories"))


STEP = Fitted(_observe, _combine, _build, Categories, trained=True)
