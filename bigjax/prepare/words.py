"""Words and n-grams of text in any script, without a model: what filters count and what duplicates share."""

import re
import zlib
from functools import cache

import numpy as np

from bigjax.prepare.errors import PrepareError

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of scripts that put no space between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""

_WORD = rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+(?:['’](?:(?![{_UNSPACED}])[^\W_])+)*"
_WORDS = re.compile(_WORD)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|(?<=[。！？])[”’」』）]*|\n+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; each letter of a script without spaces is one."""
    return _WORDS.findall(text.lower())


def spelt(text: str) -> list[str]:
    """Return the words of a text as they are spelt, without punctuation."""
    return _WORDS.findall(text)


def any_word(text: str) -> bool:
    """Whether there is a word in a text."""
    return _WORDS.search(text) is not None


def sentences(text: str) -> list[str]:
    """Return the parts of a text that end with a full stop, a question or exclamation mark, or a line."""
    return [part for part in _SENTENCE_END.split(text) if part and part.strip()]


@cache
def tokenizer():
    """Return `spelt` and `sentences` as a word tokenizer of datatrove, whose own for English is spaCy's.

    There a punctuation mark is a word, too: of plays with many commas fewer than 80 % of the words have a letter.

    Raises:
      PrepareError: datatrove is not installed.
    """
    try:
        from datatrove.utils.word_tokenizers import WordTokenizer, simple_span_tokenize
    except ModuleNotFoundError:
        raise PrepareError("this step needs datatrove: pip install 'bigjax[prepare]'") from None

    class Words(WordTokenizer):
        """Words by a regular expression."""

        def word_tokenize(self, text: str) -> list[str]:
            return spelt(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [part.strip() for part in sentences(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return list(simple_span_tokenize(text, self.sent_tokenize(text)))

    return Words()


_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(values: np.ndarray) -> np.ndarray:
    """Return uint64 values whose every bit depends on every bit of the given ones (splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX1
    values = (values ^ (values >> np.uint64(27))) * _MIX2
    return values ^ (values >> np.uint64(31))


def ngrams(found: list[str], n: int) -> np.ndarray:
    """Return a uint64 hash of each run of n words, in order; of fewer words, one hash of all of them.

    A text that is shorter than n words would else share its empty set with every other such text.
    """
    hashes = np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in found), np.uint64, len(found))
    hashes = mixed(hashes + _FACTOR)
    n = min(n, len(found))
    if n == 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(len(found) - n + 1, np.uint64)
    for i in range(n):
        total = total * _FACTOR + hashes[i : len(found) - n + 1 + i]
    return mixed(total)
