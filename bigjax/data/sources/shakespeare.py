"""The packaged corpus: Shakespeare's complete works, with a fixed list of held-out works, whole or in passages.

`corpora/SHAKESPEARE.md` records source, licence, making and checksums.
"""

import json
import lzma
import re
from collections.abc import Iterator
from importlib import resources

from bigjax.data.errors import DataError

CORPUS = resources.files("bigjax.data") / "corpora" / "shakespeare.jsonl.xz"
SHA256 = "6f1d0edc0d7d10ea295a934b9bf86868ed07cc5572bdf66d463b512d467f3103"
HELD_OUT = ("comedy_of_errors", "john", "macbeth")
"""A comedy, a history and a tragedy: 6.2 % of the bytes."""


def works() -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the 42 works, in alphabetical order of the name."""
    with CORPUS.open("rb") as compressed, lzma.open(compressed, "rt", encoding="utf-8") as lines:
        for line in lines:
            work = json.loads(line)
            yield work["name"], work["text"]


GENRES = {
    "comedy": """alls_well_that_ends_well as_you_like_it comedy_of_errors loves_labours_lost measure_for_measure
        merchant_of_venice merry_wives_of_windsor midsummer_nights_dream much_ado_about_nothing taming_of_the_shrew
        tempest twelfth_night two_gentlemen_of_verona winters_tale""",
    "history": """henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2 henry_vi_part_3 henry_viii
        john richard_ii richard_iii""",
    "tragedy": """antony_and_cleopatra coriolanus cymbeline hamlet julius_caesar lear macbeth othello romeo_and_juliet
        timon_of_athens tragedy_of_titus_andronicus troilus_and_cressida""",
}
"""The plays of the First Folio (1623) as it divides them; Troilus and Cressida, missing from its list, is printed first
of the tragedies. Pericles and the poems are not in it."""

PASSAGE_CHARACTERS = 1000
"""A passage is as many whole lines as it takes to reach this length."""

_PLAY = re.compile(r"^\s*(ACT|SCENE|PROLOGUE|INDUCTION)\b", re.MULTILINE | re.IGNORECASE)


def passages(key: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) for every passage of the plays: its `text`, or as `label` the play's genre.

    Title and list of persons, which may name the genre, are left out. Names are `WORK:NUMBER`.

    Raises:
      DataError: there is no such column.
    """
    if key not in ("text", "label"):
        raise DataError(f"shakespeare-passages has no column {key!r}, only 'text' and 'label'")
    genre_of = {name: genre for genre, names in GENRES.items() for name in names.split()}
    for name, work in works():
        if name not in genre_of:
            continue
        start = _PLAY.search(work)
        assert start, "every play has acts"
        for number, text in enumerate(_cut(work[start.start() :])):
            yield f"{name}:{number}", text if key == "text" else genre_of[name]


def _cut(text: str) -> Iterator[str]:
    lines, length = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        length += len(line)
        if length >= PASSAGE_CHARACTERS:
            yield "".join(lines)
            lines, length = [], 0
    if lines:
        yield "".join(lines)
