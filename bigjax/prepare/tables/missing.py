"""Values that are missing: filled by what is usual on the training side, by scikit-learn's imputer, or the record
dropped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bigjax.prepare.step import Arrays, Dropped, Fitted, Record
from bigjax.prepare.tables import columns


@dataclass(frozen=True)
class Missing:
    """What becomes of missing values."""

    columns: tuple[str, ...] = ()
    """The columns that are treated; empty means all."""
    numbers: Literal["median", "mean", "most_frequent", "drop"] = "median"
    """What fills a column of numbers, or `drop` for records without one."""
    texts: Literal["most_frequent", "drop"] = "most_frequent"
    """What fills any other column, or `drop` for records without a value."""
    indicator: bool = False
    """Whether a column COLUMN_missing says with 1 or 0 where a value was missing."""


def _combine(observed: list[Arrays], options: Missing, cfg) -> Arrays:
    from sklearn.impute import SimpleImputer

    del cfg
    found: dict[str, Any] = {}
    for name, values in columns.gathered(observed).items():
        present = [value for value in values if not columns.is_missing(value)]
        numeric = bool(present) and all(columns.number(value) is not None for value in present)
        strategy = options.numbers if numeric else options.texts
        filled = None
        if strategy != "drop" and present:
            column = np.array([[columns.number(value) if numeric else value] for value in present], dtype=object)
            imputer: Any = SimpleImputer(strategy=strategy).fit(column.astype(float) if numeric else column)
            filled = imputer.statistics_[0]
            filled = filled.item() if isinstance(filled, np.generic) else filled
        found[name] = {"numeric": numeric, "filled_by": filled, "missing": len(values) - len(present)}
    return columns.stored(found)


def _build(options: Missing, cfg, state: Arrays) -> Callable[[int, Record], Record | Dropped]:
    del cfg
    learnt = columns.learnt(state)

    def apply(place: int, record: Record) -> Record | Dropped:
        del place
        changed = dict(record)
        for name, column in learnt.items():
            value = columns.value_of(record, name)
            missing = columns.is_missing(value)
            if missing and column["filled_by"] is None:
                return Dropped("no_value", name)
            if missing:
                changed[name] = column["filled_by"]
            elif column["numeric"] and (read := columns.number(value)) is not None:
                changed[name] = value if isinstance(value, (int, float)) else read
            if options.indicator:
                changed[f"{name}_missing"] = int(missing)
        return changed

    return apply


STEP = Fitted(lambda options, cfg: columns.Values(options.columns), _combine, _build, Missing, trained=True)
