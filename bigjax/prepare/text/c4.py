"""The rules of C4 for lines and pages (Raffel et al. 2020, section 2.2), by datatrove's filter.

Lines that do not end a sentence, have too few words, or speak of Javascript, cookies or terms of use are taken out of
a text; a text with a curly bracket or "lorem ipsum", or with too few sentences left, is dropped. The list of bad
words of the paper is not part of it: datatrove would fetch it from the network.
"""

from dataclasses import dataclass

from bigjax.config.fields import bounded
from bigjax.prepare.step import Step
from bigjax.prepare.text import blocks
from bigjax.prepare.words import tokenizer


@dataclass(frozen=True)
class C4:
    """The limits of the rules."""

    min_sentences: int = bounded(3, minimum=0)
    """Sentences that are left, at least."""
    min_line_words: int = bounded(5, minimum=0)
    """Words of a line, at least."""
    max_word_length: int = bounded(1000, minimum=1)
    """Letters of the longest word of a line, at most."""
    end_of_line: bool = True
    """Whether a line must end with a full stop, a question or exclamation mark, or a quotation mark."""
    curly_bracket: bool = True
    """Whether a text with a curly bracket is dropped, as code is."""
    citations: bool = True
    """Whether marks of citations, as [1], are taken out."""


def _build(options: C4, cfg):
    module = blocks.imported("datatrove.pipeline.filters.c4_filters")
    return blocks.filtering(
        module.C4QualityFilter(
            remove_citations=options.citations,
            filter_no_terminal_punct=options.end_of_line,
            min_num_sentences=options.min_sentences or -1,
            min_words_per_line=options.min_line_words or -1,
            max_word_length=options.max_word_length,
            filter_curly_bracket=options.curly_bracket,
            language=tokenizer(),
        ),
        cfg,
    )


STEP = Step(_build, C4)
