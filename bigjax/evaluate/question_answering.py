"""How well answers are found in texts: exact match and F1 of words, as SQuAD measures them (Rajpurkar et al. 2016).

Legend: N rows, S sequence.
"""

import re
import string
from collections.abc import Sequence

import numpy as np

from bigjax.data.answers import AnswerSpans
from bigjax.evaluate.text_scores import bag_f1

LONGEST = 30
"""Tokens of an answer at most (Devlin et al. 2019, run_squad.py)."""


def normalise(text: str) -> str:
    """Return a text without case, punctuation, articles and superfluous space (SQuAD's evaluation script)."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def best_span(logits_2S: np.ndarray, first: int, stop: int) -> tuple[float, int, int]:
    """Return the score of the best span of at most `LONGEST` tokens in [first, stop), and its first and last place.

    The score is the logit of its start plus that of its end (Devlin et al. 2019, section 4.2).
    """
    start_n, end_n = logits_2S[:, first:stop].astype(np.float64)
    best = (-np.inf, first, first)
    for length in range(min(LONGEST, stop - first)):
        scores = start_n[: len(start_n) - length] + end_n[length:]
        place = int(np.argmax(scores))
        best = max(best, (float(scores[place]), first + place, first + place + length), key=lambda one: one[0])
    return best


def answers(logits_N2S: np.ndarray, source: AnswerSpans) -> dict[int, str]:
    """Return the best answer to each example of a source, by number, over the rows of it that were scored."""
    best: dict[int, tuple[float, str]] = {}
    for row, logits_2S in enumerate(logits_N2S):
        example, start, stop = source.pieces[row].tolist()
        if stop == start:
            continue
        place = source.first_place(row)
        score, first, last = best_span(logits_2S, place, place + stop - start)
        spans = source.spans[example][start:stop]
        text = source.examples[example].context[spans[first - place, 0] : spans[last - place, 1]]
        if example not in best or score > best[example][0]:
            best[example] = score, text
    return {example: text for example, (_, text) in best.items()}


def report(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `exact_match` and `f1` of answers, each against the best of those that would be right, and how many."""
    exact, overlap = [], []
    for text, rights in zip(found, wanted, strict=True):
        words = normalise(text).split()
        exact.append(max(normalise(text) == normalise(right) for right in rights))
        overlap.append(max(bag_f1(words, normalise(right).split()) for right in rights))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap)), "questions": len(exact)}


def peek(found: Sequence[str], wanted: Sequence[Sequence[str]], questions: Sequence[str], count: int = 5) -> str:
    """Return some questions with what was found and what is right."""
    lines = zip(questions, found, wanted, strict=True)
    return "\n".join(
        f"{question}\n  found: {text!r}, right: {rights[0]!r}" for question, text, rights in list(lines)[:count]
    )
