"""The three rules that FineWeb adds to those of C4 (Penedo et al. 2024, section 3.5), by datatrove's filter."""

from dataclasses import dataclass

from bigjax.config.fields import bounded
from bigjax.prepare.step import Step
from bigjax.prepare.text import blocks
from bigjax.prepare.words import tokenizer


@dataclass(frozen=True)
class FineWeb:
    """The limits of the rules."""

    min_ended_lines: float = bounded(0.12, minimum=0, maximum=1)
    """The share of lines that end with a punctuation mark, at least."""
    max_short_lines: float = bounded(0.67, minimum=0, maximum=1)
    """The share of lines that are short, at most."""
    short_line: int = bounded(30, minimum=0)
    """Characters up to which a line is short."""
    max_duplicate_chars: float = bounded(0.01, minimum=0, maximum=1)
    """The share of characters in lines that repeat an earlier one, at most."""
    max_line_ends: float = bounded(0.3, minimum=0)
    """Line ends a word, at most, as lists have more."""


def _build(options: FineWeb, cfg):
    module = blocks.imported("datatrove.pipeline.filters.fineweb_quality_filter")
    return blocks.filtering(
        module.FineWebQualityFilter(
            line_punct_thr=options.min_ended_lines,
            short_line_thr=options.max_short_lines,
            short_line_length=options.short_line,
            char_duplicates_ratio=options.max_duplicate_chars,
            new_line_ratio=options.max_line_ends,
            language=tokenizer(),
        ),
        cfg,
    )


STEP = Step(_build, FineWeb)
