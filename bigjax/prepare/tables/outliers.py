"""Numbers far from those of the training side: the record is dropped from training, or the number cut to the limit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bigjax.config.fields import bounded
from bigjax.prepare.step import Arrays, Dropped, Fitted, Record
from bigjax.prepare.tables import columns
from bigjax.prepare.writing import SIDE


@dataclass(frozen=True)
class Outliers:
    """What is far, and what becomes of it."""

    columns: tuple[str, ...] = ()
    """The columns of numbers that are treated."""
    rule: Literal["iqr", "zscore"] = "iqr"
    """`iqr`: beyond the quartiles by so many times their distance (Tukey 1977); `zscore`: in standard deviations."""
    factor: float = bounded(1.5, above=0)
    """How far is far."""
    action: Literal["drop", "clip"] = "drop"
    """`drop` drops training records, held-out ones stay as they are; `clip` cuts the numbers of all."""


def _combine(observed: list[Arrays], options: Outliers, cfg) -> Arrays:
    del cfg
    found = {}
    for name, values in columns.gathered(observed).items():
        column = columns.numbers(values, name)[:, 0]
        if options.rule == "iqr":
            low, high = np.quantile(column, (0.25, 0.75))
            reach = options.factor * (high - low)
        else:
            low = high = column.mean()
            reach = options.factor * column.std()
        found[name] = {"low": float(low - reach), "high": float(high + reach)}
    return columns.stored(found)


def _build(options: Outliers, cfg, state: Arrays) -> Callable[[int, Record], Record | Dropped]:
    del cfg
    limits = columns.learnt(state)

    def apply(place: int, record: Record) -> Record | Dropped:
        del place
        changed = dict(record)
        for name, limit in limits.items():
            value = columns.number_of(record, name)
            if limit["low"] <= value <= limit["high"]:
                continue
            if options.action == "clip":
                changed[name] = min(max(value, limit["low"]), limit["high"])
            elif record.get(SIDE, columns.TRAIN) == columns.TRAIN:
                return Dropped("outlier", f"{name} = {value:g}")
        return changed

    return apply


def _observe(options: Outliers, cfg) -> columns.Values:
    del cfg
    return columns.Values(columns.named_columns(options, "outliers"))


STEP = Fitted(_observe, _combine, _build, Outliers, trained=True)
