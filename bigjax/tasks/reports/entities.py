"""How well the classes of words are told apart, and the entities that their tags spell out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Entity = tuple[str, int, int]
"""Kind, first word, and the word after the last."""


def is_bio(classes: Sequence[str]) -> bool:
    """Return whether tags are `O`, `B-KIND` and `I-KIND` (Ramshaw & Marcus 1995)."""
    return any(name.startswith("B-") for name in classes) and all(
        name == "O" or (name[:2] in ("B-", "I-") and len(name) > 2) for name in classes
    )


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """Yield the entities of a sentence as the CoNLL-2000 script `conlleval` finds them.

    One starts at a `B-`, and at an `I-` that does not go on with an entity of its kind.
    """
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            yield kind, start, place
            kind = ""
        if tag != "O" and not kind:
            start, kind = place, tag[2:]


def report(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return precision, recall and F1 of entities, right if kind and both ends are (Tjong Kim Sang & De Meulder 2003).

    `micro` counts all entities together, `macro` averages over the `kinds` that are predicted or true; `kinds` also
    have the number of true `entities`. What divides by nothing is 0.
    """
    found, wanted, right = Counter(), Counter(), Counter()
    for guessed, known in zip(predicted, true, strict=True):
        here, there = set(entities(guessed)), set(entities(known))
        for counter, some in ((found, here), (wanted, there), (right, here & there)):
            counter.update(kind for kind, _, _ in some)
    kinds = sorted(found | wanted)
    each = {kind: _scores(right[kind], found[kind], wanted[kind]) for kind in kinds}
    return {
        "micro": _scores(right.total(), found.total(), wanted.total()),
        "macro": {name: float(np.mean([one[name] for one in each.values()] or [0.0])) for name in _NAMES},
        "kinds": {kind: {**one, "entities": wanted[kind]} for kind, one in each.items()},
    }


_NAMES = ("precision", "recall", "f1")


def _scores(right: int, found: int, wanted: int) -> dict[str, float]:
    values = right / found if found else 0.0, right / wanted if wanted else 0.0
    return dict(zip(_NAMES, (*values, 2 * right / (found + wanted) if found + wanted else 0.0), strict=True))


def sentences(labels: np.ndarray, classes: Sequence[str], words: Sequence[int]) -> list[list[str]]:
    """Return the tags of each sentence from the classes (n,) of the words of all, or of the first so many."""
    ends = np.minimum(np.cumsum(words), len(labels))
    parts = np.split(np.array(classes)[labels], ends[:-1]) if len(ends) else []
    return [part.tolist() for part in parts]


def table(measured: dict[str, Any]) -> str:
    """Return the report as text: a line for each kind."""
    width = max(map(len, [*measured["kinds"], "entities", "micro", "macro"]))
    lines = [f"{'entities':{width}}  precision  recall      F1  entities"]
    for name, one in (*measured["kinds"].items(), *((name, measured[name]) for name in ("micro", "macro"))):
        count = f"  {one['entities']:8d}" if "entities" in one else ""
        lines.append(f"{name:{width}}  {one['precision']:9.3f}  {one['recall']:6.3f}  {one['f1']:6.3f}{count}")
    return "\n".join(lines)
