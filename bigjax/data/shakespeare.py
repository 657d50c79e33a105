"""The packaged corpus: Shakespeare's complete works, with a fixed list of held-out works.

`corpora/SHAKESPEARE.md` records source, licence, making and checksums.
"""

import json
import lzma
from collections.abc import Iterator
from importlib import resources

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
