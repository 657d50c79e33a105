"""Which documents stand twice: within what is trained on, within what is held out, and in both.

Two documents are the same if their characters are, white space and case aside.
"""

import array
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.sources.held_out import canonical
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.cache import content_key, make_once

FORMAT = 1


def hash_of(text: str) -> int:
    """Return 8 bytes that tell texts apart, white space and case aside."""
    folded = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest())


def count(train: Sequence[SplitSource], held_out: Sequence[SplitSource], root: Path) -> dict[str, int]:
    """Return how many documents there are and how many are duplicates.

    `train` and `held_out` documents; `train_repeated` and `held_out_repeated`, those that an earlier one on the same
    side equals; `held_out_trained_on`, those held out that are trained on, too. Documents without a character do not
    count. In memory are 8 bytes of each document; those are kept in the cache below `root`.

    Raises:
      DataError: a source cannot be read, or the cache not written.
    """
    sides = {"train": _hashes(train, root), "held_out": _hashes(held_out, root)}
    found = {name: len(hashes) for name, hashes in sides.items()}
    unique = {name: np.unique(hashes) for name, hashes in sides.items()}
    found |= {f"{name}_repeated": len(sides[name]) - len(unique[name]) for name in sides}
    return found | {"held_out_trained_on": int(np.isin(sides["held_out"], unique["train"]).sum())}


def _hashes(sides: Iterable[SplitSource], root: Path) -> np.ndarray:
    parts = [_hashes_of(side, root) for side in sides]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _hashes_of(side: SplitSource, root: Path) -> np.ndarray:
    folder = root / "documents" / content_key(FORMAT, side.key())
    make_once(folder, lambda temporary: _write(temporary, side))
    try:
        return np.fromfile(folder / "hashes.bin", np.uint64)
    except OSError as error:
        raise DataError(f"the cached {folder} cannot be read ({error.strerror}): delete it and run again") from None


def _write(folder: Path, side: SplitSource) -> None:
    texts = (_text(document) for _, document in side.documents())
    hashes = array.array("Q", (hash_of(text) for text in texts if text and not text.isspace()))
    (folder / "hashes.bin").write_bytes(hashes.tobytes())


def _text(document: Any) -> str:
    """Return what a document says: a record's first column, and of more than two, such as a question's, the second."""
    return document if isinstance(document, str) else canonical(document[: 1 if len(document) == 2 else 2]).decode()


def told(found: dict[str, int]) -> list[str]:
    """Return a sentence for each kind of duplicates that there is."""
    train, held_out = found["train"], found["held_out"]
    counts = (
        ("held_out_trained_on", held_out, "held-out documents are trained on, too"),
        ("train_repeated", train, "training documents repeat an earlier one"),
        ("held_out_repeated", held_out, "held-out documents repeat an earlier one"),
    )
    return [
        f"{found[name]:,} of {total:,} {what} ({found[name] / total:.1%}), white space and case aside"
        for name, total, what in counts
        if found[name]
    ]


def check(found: dict[str, int], most: float) -> None:
    """Raise DataError if more than a share `most` of the documents that are held out are trained on, too."""
    both, held_out = found["held_out_trained_on"], found["held_out"]
    if both > most * held_out:
        share = both / held_out
        raise DataError(
            f"{both:,} of {held_out:,} held-out documents are trained on, too ({share:.1%}, white space and case "
            f"aside), more than data.max_overlap={most}: take them out of one side, or raise that to "
            f"{math.ceil(share * 1e4) / 1e4} if their scores may count all the same"
        )
