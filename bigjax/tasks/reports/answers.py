"""How well answers are found in texts: exact match and F1 of words, as SQuAD measures them (Rajpurkar et al. 2016),
also where some questions have no answer (Rajpurkar et al. 2018, SQuAD 2.0).

Legend: N rows, S sequence.
"""

import re
import string
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bigjax.data.rows.answers import AnswerSpans
from bigjax.tasks.reports.texts import bag_f1

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


class Found(NamedTuple):
    """The best answer to a question.

    Attributes:
      doubt: by how much the score of no answer, both ends at `[CLS]`, exceeds that of the answer.
    """

    text: str
    doubt: float


class Span(NamedTuple):
    """The best answer to a question, and where it stands.

    Attributes:
      start, end: which characters of the context it is, from and to.
      score: the logit of its start plus that of its end.
      probability: that of its start times that of its end, among the places of the context in the row that holds it
        and `[CLS]`, as in the question-answering pipeline of transformers 4.
      none: the score of no answer.
    """

    text: str
    start: int
    end: int
    score: float
    probability: float
    none: float


def best_answers(logits_N2S: Sequence[np.ndarray] | np.ndarray, source: AnswerSpans) -> dict[int, Span]:
    """Return the best answer to each example of a source, by number, over the rows of it that were scored.

    The score of no answer is the least of those of the rows, as each of the others holds a part of the text only
    (Devlin et al. 2019, run_squad.py).
    """
    best: dict[int, Span] = {}
    none: dict[int, float] = {}
    for row, logits_2S in enumerate(logits_N2S):
        example, begin, stop = source.pieces[row].tolist()
        if stop == begin:
            continue
        place = source.first_place(row)
        exact_2S = logits_2S.astype(np.float64)
        score, first, last = best_span(exact_2S, place, place + stop - begin)
        spans = source.spans[example][begin:stop]
        context = source.examples[example].context
        start, end = _without_space(context, int(spans[first - place, 0]), int(spans[last - place, 1]))
        if example not in best or score > best[example].score:
            among_2n = exact_2S[:, [0, *range(place, place + stop - begin)]]
            chosen = np.logaddexp.reduce(among_2n, axis=1).sum()
            best[example] = Span(context[start:end], start, end, score, float(np.exp(score - chosen)), 0.0)
        none[example] = min(none.get(example, np.inf), float(exact_2S[:, 0].sum()))
    return {example: span._replace(none=none[example]) for example, span in best.items()}


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without the space at its ends, which many tokens start with."""
    kept = text[start:end].strip()
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return start, start + len(kept)


def answers(logits_N2S: Sequence[np.ndarray] | np.ndarray, source: AnswerSpans) -> dict[int, Found]:
    """Return `best_answers` without their places."""
    return {number: Found(one.text, one.none - one.score) for number, one in best_answers(logits_N2S, source).items()}


def said(found: Iterable[Found], threshold: float) -> list[str]:
    """Return the answers, empty where the doubt exceeds a threshold (Devlin et al. 2019, section 4.3)."""
    return ["" if one.doubt > threshold else one.text for one in found]


def report(texts: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return `exact_match` and `f1` of answers, each against the best of those that would be right, and how many.

    Where some questions have no answer, the same of them, `no_answer`, and of the others, `has_answer`: as in the
    evaluation script of SQuAD 2.0, no answer is right if it is empty.
    """
    exact, overlap = _scores(texts, wanted)
    sides = {"no_answer": np.array([not rights for rights in wanted])}
    sides["has_answer"] = ~sides["no_answer"]
    measured: dict[str, Any] = _means(exact, overlap)
    if sides["no_answer"].any():
        measured |= {name: _means(exact[side], overlap[side]) for name, side in sides.items() if side.any()}
    return measured


def best_thresholds(found: Sequence[Found], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the highest `best_exact_match` and `best_f1` that any threshold gives, and which threshold does.

    It is chosen on the data that it is measured on, as in the evaluation script of SQuAD 2.0.
    """
    kept = _scores([one.text for one in found], wanted)
    without = _scores([""] * len(found), wanted)[0]  # no words are all right or all wrong
    order = np.argsort([one.doubt for one in found], kind="stable")
    doubts = np.array([one.doubt for one in found])[order]
    # One threshold answers all questions up to some doubt, that one included.
    last = np.append(np.diff(doubts) > 0, True)
    measured = {}
    for name, scores in zip(("exact_match", "f1"), kept, strict=True):
        totals = np.cumsum((scores - without)[order])[last] + without.sum()
        best = int(np.argmax(totals))
        total, threshold = float(totals[best]), float(doubts[last][best])
        if without.sum() > total:  # answering nothing
            total, threshold = float(without.sum()), float(np.nextafter(doubts[0], -np.inf))
        measured |= {f"best_{name}": total / len(found), f"best_{name}_threshold": threshold}
    return measured


def _scores(texts: Sequence[str], wanted: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return exact match and F1 of each answer."""
    exact, overlap = [], []
    for text, rights in zip(texts, wanted, strict=True):
        words = normalise(text).split()
        normal = [normalise(right).split() for right in rights]
        normal = [right for right in normal if right] or [[]]
        exact.append(float(words in normal))
        overlap.append(max(bag_f1(words, right) for right in normal))
    return np.array(exact), np.array(overlap)


def _means(exact: np.ndarray, overlap: np.ndarray) -> dict[str, float]:
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap)), "questions": len(exact)}


def peek(texts: Sequence[str], wanted: Sequence[Sequence[str]], questions: Sequence[str], count: int = 5) -> str:
    """Return some questions with what was found and what is right."""
    lines = list(zip(questions, texts, wanted, strict=True))[:count]
    return "\n".join(
        f"{question}\n  found: {text!r}, right: {rights[0] if rights else ''!r}" for question, text, rights in lines
    )
