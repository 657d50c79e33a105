"""The repetition rules of Gopher (Rae et al. 2021, table A1), by datatrove's filter."""

from dataclasses import dataclass

from bigjax.config.fields import bounded
from bigjax.prepare.step import Step
from bigjax.prepare.text import blocks
from bigjax.prepare.words import tokenizer


@dataclass(frozen=True)
class GopherRepetition:
    """The limits of the rules, each a share of a text."""

    duplicate_lines: float = bounded(0.3, minimum=0, maximum=1)
    """Lines that repeat an earlier one, of all lines."""
    duplicate_paragraphs: float = bounded(0.3, minimum=0, maximum=1)
    """Paragraphs that repeat an earlier one, of all paragraphs."""
    duplicate_line_chars: float = bounded(0.2, minimum=0, maximum=1)
    """Characters in such lines."""
    duplicate_paragraph_chars: float = bounded(0.2, minimum=0, maximum=1)
    """Characters in such paragraphs."""
    top_ngrams: tuple[float, ...] = bounded((0.2, 0.18, 0.16), minimum=0, maximum=1)
    """Characters in the most frequent run of 2, 3, 4 words."""
    duplicate_ngrams: tuple[float, ...] = bounded((0.15, 0.14, 0.13, 0.12, 0.11, 0.10), minimum=0, maximum=1)
    """Characters in runs of 5, 6, 7, 8, 9, 10 words that repeat an earlier one."""


def _build(options: GopherRepetition, cfg):
    module = blocks.imported("datatrove.pipeline.filters.gopher_repetition_filter")
    return blocks.filtering(
        module.GopherRepetitionFilter(
            dup_line_frac=options.duplicate_lines,
            dup_para_frac=options.duplicate_paragraphs,
            dup_line_char_frac=options.duplicate_line_chars,
            dup_para_char_frac=options.duplicate_paragraph_chars,
            top_n_grams=tuple(enumerate(options.top_ngrams, start=2)),
            dup_n_grams=tuple(enumerate(options.duplicate_ngrams, start=5)),
            language=tokenizer(),
        ),
        cfg,
    )


STEP = Step(_build, GopherRepetition)
