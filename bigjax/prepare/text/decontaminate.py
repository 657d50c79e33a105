"""Texts that share a run of words with an evaluation set (Brown et al. 2020, appendix C).

Written by hand: datatrove reads the tasks of lighteval, not files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bigjax.config.fields import bounded
from bigjax.errors import ConfigError
from bigjax.prepare.reading import texts
from bigjax.prepare.step import Dropped, Record, Step, text_of
from bigjax.prepare.words import ngrams, words


@dataclass(frozen=True)
class Decontaminate:
    """What is kept out of the training text."""

    files: tuple[str, ...] = ()
    """Evaluation sets, as JSON lines or, for names that end with .txt, a text each."""
    columns: tuple[str, ...] = ("text",)
    """The columns of JSON lines that count, of those that a line has."""
    ngram: int = bounded(13, minimum=1)
    """Words of a run; a shorter evaluation text counts whole."""
    max_share: float = bounded(0.0, minimum=0, maximum=1)
    """The share of a text's n-grams that an evaluation set may have, too."""


def _build(options: Decontaminate, cfg) -> Callable[[Record], Record | Dropped]:
    if not options.files:
        raise ConfigError("decontaminate.files is empty: name the evaluation sets, or leave the step out")
    lengths: dict[int, list[np.ndarray]] = {}
    for text in texts("decontaminate.files", options.files, options.columns):
        found = words(text)
        n = min(options.ngram, len(found))
        if n:
            lengths.setdefault(n, []).append(ngrams(found, n))
    known = {n: np.unique(np.concatenate(parts)) for n, parts in sorted(lengths.items())}

    def apply(record: Record) -> Record | Dropped:
        found = words(text_of(record, cfg.text_key))
        for n, evaluated in known.items():
            if len(found) < n:
                continue
            mine = ngrams(found, n)
            both = np.flatnonzero(np.isin(mine, evaluated, assume_unique=False, kind="sort"))
            if len(both) > options.max_share * len(mine):
                return Dropped("contaminated", " ".join(found[both[0] : both[0] + n]))
        return record

    return apply


STEP = Step(_build, Decontaminate)
