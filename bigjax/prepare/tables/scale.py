"""Numbers brought to one scale by what the training side has, as scikit-learn's scalers do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bigjax.prepare.step import Arrays, Dropped, Fitted, Record
from bigjax.prepare.tables import columns


@dataclass(frozen=True)
class Scale:
    """Which numbers, and how."""

    columns: tuple[str, ...] = ()
    """The columns of numbers that are scaled."""
    kind: Literal["standard", "minmax", "robust"] = "standard"
    """`standard`: mean 0 and standard deviation 1; `minmax`: from 0 to 1; `robust`: median 0 and quartiles 1 apart."""


def _combine(observed: list[Arrays], options: Scale, cfg) -> Arrays:
    from sklearn import preprocessing

    del cfg
    found = {}
    for name, values in columns.gathered(observed).items():
        column = columns.numbers(values, name)
        scaler: Any
        if options.kind == "standard":
            scaler = preprocessing.StandardScaler().fit(column)
            shift, factor = scaler.mean_[0], scaler.scale_[0]
        elif options.kind == "robust":
            scaler = preprocessing.RobustScaler().fit(column)
            shift, factor = scaler.center_[0], scaler.scale_[0]
        else:
            scaler = preprocessing.MinMaxScaler().fit(column)
            shift, factor = scaler.data_min_[0], 1 / scaler.scale_[0]
        found[name] = {"minus": float(shift), "over": float(factor)}
    return columns.stored(found)


def _build(options: Scale, cfg, state: Arrays) -> Callable[[int, Record], Record | Dropped]:
    del options, cfg
    learnt = columns.learnt(state)

    def apply(place: int, record: Record) -> Record | Dropped:
        del place
        scaled = {name: (columns.number_of(record, name) - by["minus"]) / by["over"] for name, by in learnt.items()}
        return {**record, **scaled}

    return apply


def _observe(options: Scale, cfg) -> columns.Values:
    del cfg
    return columns.Values(columns.named_columns(options, "scale"))


STEP = Fitted(_observe, _combine, _build, Scale, trained=True)
