"""`tokens:GLOB`, a source of tokens that are stored: shards, or tables with a column of ids."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.config import TrainConfig
from bigjax.data.errors import DataError
from bigjax.data.sources import readers
from bigjax.data.stored import converted
from bigjax.data.stored.corpus import Corpus, open_corpus
from bigjax.data.tokens.cache import cache_folder

LISTED = 1000
"""Of more shards than these a run keeps only the hash of all."""


def open_tokens(pattern: str, root: Path | None) -> Corpus:
    """Return the tokens of the files that match a glob; those of tables are kept as shards in the cache below `root`.

    Raises:
      DataError: nothing matches, or a file is not what it should be.
    """
    root = root or cache_folder(None)
    if not converted.suffix(pattern):
        return open_corpus(pattern, root)
    files, _ = readers.find_files(pattern)
    if wrong := next((path for path in files if not converted.suffix(path)), None):
        raise DataError(f"tokens:{pattern} matches {wrong}, which is none of {', '.join(converted.SUFFIXES)}")
    try:
        digests = [readers.file_digest(path, root) for path in files]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    return open_corpus(f"{converted.convert(files, digests, root)}/*.bin", root)


def no_documents(spec: str) -> Iterator[Any]:
    """Refuse to read a source of tokens as texts.

    Raises:
      DataError: always.
    """
    raise DataError(
        f"{spec!r} holds tokens, not texts: set train.objective={TrainConfig.objective!r}, and data.tokenizer to the "
        "one that they were made with, as hf:PATH"
    )
    yield


def check_apart(spec: str, held_out: Corpus | None, trained_on: Sequence[tuple[str, Corpus | None]]) -> None:
    """Raise DataError if a shard that is held out is trained on, too."""
    for other, corpus in trained_on if held_out is not None else ():
        if corpus is None or held_out is None:
            continue
        shared = np.flatnonzero(np.isin(held_out.digests.view("S32"), corpus.digests.view("S32")))
        if len(shared):
            raise DataError(
                f"data.eval_sources: {held_out.path(int(shared[0]))} of {spec!r} has the same bytes as a shard of "
                f"{other!r}, which is trained on: take it out of one of them"
            )
