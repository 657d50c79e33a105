"""The classes of a head at Hugging Face, in the order of their logits; does not import JAX.

The weights fix that order. Labels of other data are put in it, never the other way round.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigjax.config import ModelConfig
from bigjax.data.rows.labelled import numbered
from bigjax.errors import brief, listed
from bigjax.interop.hf.architecture import HuggingFaceError, Settings

LABELS, COUNT = "id2label", "num_labels"


def read_labels(settings: Settings) -> tuple[str, ...]:
    """Return the names of the classes in the order of their logits: numbers where none are named, as transformers has.

    Raises:
      HuggingFaceError: `id2label` is not a table of a name for each number, or `num_labels` says another count.
    """
    named, count = settings.take(LABELS), settings.take(COUNT)
    if not named:
        return numbered(2 if count is None else count)
    try:
        names = tuple(named[number] for number in sorted(named, key=int))
        if sorted(map(int, named)) != list(range(len(named))) or not all(isinstance(name, str) for name in names):
            raise ValueError
    except (TypeError, ValueError, AttributeError):
        raise HuggingFaceError(f"{settings.place}: {LABELS} is not a table of a name for each number from 0") from None
    if count not in (None, len(names)):
        raise HuggingFaceError(f"{settings.place}: {COUNT}={brief(count)}, but {LABELS} has {len(names)} names")
    return names


def same_head(theirs: ModelConfig, ours: ModelConfig) -> bool:
    """Return whether a model of `ours` can go on with the head of `theirs`, classes and all."""
    return (theirs.head, theirs.num_classes) == (ours.head, ours.num_classes)


def write_labels(classes: Sequence[str]) -> dict[str, Any]:
    """Return the keys of `config.json` that name classes, given in their order."""
    return {LABELS: {str(i): name for i, name in enumerate(classes)}, "label2id": {x: i for i, x in enumerate(classes)}}


def check_order(source: str | Path, theirs: Sequence[str], ours: Sequence[str], *, chosen: bool) -> None:
    """Raise HuggingFaceError unless the classes of a run are those, in that order, of the head that it starts from.

    Args:
      source: where the head comes from. chosen: whether the config names the classes, and so may rename them.
    """
    numbers = [*map(str, range(len(theirs)))]
    if tuple(ours) == tuple(theirs) or (tuple(theirs) == numbered(len(theirs)) and [*ours] == numbers):
        return
    if not chosen:
        raise HuggingFaceError(
            f"the head of {source} has the classes {listed(theirs)} in this order, the labels of the data are "
            f"{listed(ours)}: set data.classes to the labels of the data in the order of the head's classes"
        )
    places = {name.casefold(): i for i, name in enumerate(theirs)}
    moved = [name for i, name in enumerate(ours) if places.get(name.casefold(), i) != i]
    if moved:
        place = places[moved[0].casefold()]
        raise HuggingFaceError(
            f"data.classes has {brief(moved[0])} in another place than the head of {source}, where it is class "
            f"{place}: the order there is {listed(theirs)}"
        )
