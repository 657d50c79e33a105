"""The quality rules of Gopher (Rae et al. 2021, section A1.1), by datatrove's filter."""

from dataclasses import dataclass

from bigjax.config.fields import bounded
from bigjax.prepare.step import Step
from bigjax.prepare.text import blocks
from bigjax.prepare.words import tokenizer


@dataclass(frozen=True)
class GopherQuality:
    """The limits of the rules."""

    min_words: int = bounded(50, minimum=1)
    """Words that a text has at least; punctuation marks are none."""
    max_words: int = bounded(100_000, minimum=1)
    """Words that a text has at most."""
    min_word_length: float = bounded(3.0, minimum=0)
    """The mean length of words, at least."""
    max_word_length: float = bounded(10.0, minimum=0)
    """The mean length of words, at most."""
    max_symbols: float = bounded(0.1, minimum=0)
    """Hashes, and ellipses, a word, at most."""
    max_bullet_lines: float = bounded(0.9, minimum=0, maximum=1)
    """The share of lines that begin with a bullet, at most."""
    max_ellipsis_lines: float = bounded(0.3, minimum=0, maximum=1)
    """The share of lines that end with an ellipsis, at most."""
    min_alphabetic: float = bounded(0.8, minimum=0, maximum=1)
    """The share of words that have a letter, at least."""
    min_stop_words: int = bounded(2, minimum=0)
    """How many of the stop words occur, at least; for other languages than English give their own, or 0 here."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The stop words."""


def _build(options: GopherQuality, cfg):
    module = blocks.imported("datatrove.pipeline.filters.gopher_quality_filter")
    return blocks.filtering(
        module.GopherQualityFilter(
            min_doc_words=options.min_words,
            max_doc_words=options.max_words,
            min_avg_word_length=options.min_word_length,
            max_avg_word_length=options.max_word_length,
            max_symbol_word_ratio=options.max_symbols,
            max_bullet_lines_ratio=options.max_bullet_lines,
            max_ellipsis_lines_ratio=options.max_ellipsis_lines,
            max_non_alpha_words_ratio=options.min_alphabetic,
            min_stop_words=options.min_stop_words,
            stop_words=list(options.stop_words),
            language=tokenizer(),
        ),
        cfg,
    )


STEP = Step(_build, GopherQuality)
