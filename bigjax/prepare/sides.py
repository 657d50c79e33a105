"""Which records are trained on and which are held out, or which of k folds they are in, by scikit-learn's splitters.

Records go to the folders `train/` and `eval/`, or `fold0/`, `fold1/`, ... of which all but one are trained on:
`jsonl:prepared/fold[!0]/*.jsonl`. Steps that learn from records come after this one and learn from `train` only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bigjax.config.fields import bounded
from bigjax.errors import ConfigError
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Arrays, Dropped, Fitted, Record
from bigjax.prepare.tables import columns
from bigjax.prepare.writing import SIDE


@dataclass(frozen=True)
class Sides:
    """How records are split."""

    by: Literal["record", "group", "time"] = "record"
    """`record`: each by itself; `group`: those with one value of `column` together; `time`: the latest are held out."""
    column: str = ""
    """The column with the group, or with the time: numbers, or texts that sort, as 2024-05-31 does."""
    stratify: str = ""
    """The column of which all sides get each value in the same share; empty for none."""
    share: float = bounded(0.1, above=0, below=1)
    """The share of records, or of groups, that is held out, where there are no folds."""
    folds: int = bounded(0, minimum=0)
    """How many folds there are; 0 means two sides, `train` and `eval`. Folds by time are consecutive."""

    def __post_init__(self):
        if self.folds == 1:
            raise ConfigError("sides.folds=1 is no split: give 0, or at least 2")
        if self.by != "record" and not self.column:
            raise ConfigError(f"sides.by={self.by!r} needs sides.column, the column with the {self.by}")
        if self.by == "time" and self.stratify:
            raise ConfigError("sides.stratify cannot hold with sides.by='time': the times decide")


class _Keys:
    def __init__(self, options: Sides, cfg):
        del cfg
        self.options = options
        self.places: list[int] = []
        self.keys: list[str] = []
        self.labels: list[str] = []

    def add(self, place: int, record: Record) -> None:
        self.places.append(place)
        self.keys.append(str(_value(record, self.options.column)) if self.options.by != "record" else "")
        self.labels.append(str(_value(record, self.options.stratify)) if self.options.stratify else "")

    def arrays(self) -> Arrays:
        texts = {"keys": self.keys, "labels": self.labels}
        return {"places": np.array(self.places, np.uint64), **{k: np.array(v, np.str_) for k, v in texts.items()}}


def _value(record: Record, column: str) -> Any:
    value = columns.value_of(record, column)
    if columns.is_missing(value):
        raise PrepareError(f"column {column!r} has no value here, which the split needs")
    return value


def _combine(observed: list[Arrays], options: Sides, cfg) -> Arrays:
    places, keys, labels = _joined(observed)
    try:
        side = _assigned(keys, labels, options, cfg.seed)
    except ValueError as error:  # what scikit-learn says of too few records, groups or labels
        raise PrepareError(f"sides: {len(places):,} records cannot be split so: {error}") from None
    if len(set(side.tolist())) < (options.folds or 2):
        raise PrepareError(f"sides: {len(places):,} records leave a side empty: choose another share, or fewer folds")
    return {"places": places, "sides": side}


def _joined(observed: list[Arrays]) -> list[np.ndarray]:
    return [np.concatenate([shard[name] for shard in observed]) for name in ("places", "keys", "labels")]


def _assigned(keys: np.ndarray, labels: np.ndarray, options: Sides, seed: int) -> np.ndarray:
    """Return the fold of each record, or 1 for those held out and 0 for the others."""
    from sklearn import model_selection

    count, k = len(keys), options.folds or max(2, round(1 / options.share))
    empty, side = np.zeros(count), np.zeros(count, np.int32)
    if options.by == "time":
        return _by_time(keys, options)
    if options.by == "group" and options.stratify:
        splitter = model_selection.StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    elif options.by == "group":
        shuffled = model_selection.GroupShuffleSplit(1, test_size=options.share, random_state=seed)
        splitter = model_selection.GroupKFold(k, shuffle=True, random_state=seed) if options.folds else shuffled
    elif options.stratify:
        shuffled = model_selection.StratifiedShuffleSplit(1, test_size=options.share, random_state=seed)
        splitter = model_selection.StratifiedKFold(k, shuffle=True, random_state=seed) if options.folds else shuffled
    else:
        shuffled = model_selection.ShuffleSplit(1, test_size=options.share, random_state=seed)
        splitter = model_selection.KFold(k, shuffle=True, random_state=seed) if options.folds else shuffled
    for fold, (_, held_out) in enumerate(splitter.split(empty, labels, keys if options.by == "group" else None)):
        side[held_out] = fold if options.folds else 1
        if not options.folds:
            break
    return side


def _by_time(keys: np.ndarray, options: Sides) -> np.ndarray:
    read = [columns.number(str(key)) for key in keys]
    times = np.array(read) if all(value is not None for value in read) else keys
    # Records of one time are on one side: each goes by the first of its time.
    first = np.searchsorted(np.sort(times), times, side="left") / max(len(times), 1)
    if options.folds:
        return np.minimum((first * options.folds).astype(np.int32), options.folds - 1)
    return (first >= 1 - options.share).astype(np.int32)


def _build(options: Sides, cfg, state: Arrays) -> Callable[[int, Record], Record | Dropped]:
    del cfg
    places, side = state["places"], state["sides"]

    def apply(place: int, record: Record) -> Record | Dropped:
        at = int(side[np.searchsorted(places, np.uint64(place))])
        return {**record, SIDE: f"fold{at}" if options.folds else ("train", "eval")[at]}

    return apply


STEP = Fitted(_Keys, _combine, _build, Sides, counted=(SIDE,))
