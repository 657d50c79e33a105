"""Questions with a few possible answers, of which a model chooses the likeliest: as in lm-evaluation-harness."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigjax.data.sources.readers import decode
from bigjax.errors import UserError
from bigjax.evaluate.likelihood import Scorer

DELIMITER = " "
"""What stands between a question and a choice; lm-evaluation-harness calls it `target_delimiter`."""


@dataclass(frozen=True)
class Question:
    """A question as the model reads it, possible answers, and the place of the right one, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: str | Path) -> list[Question]:
    """Read a JSONL of objects with `question`, `choices` and `answer`, the place of the right choice or its text.

    Raises:
      UserError: there is no such file, it is not UTF-8, or a line is not such an object; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path} of questions")
    text = decode(path.read_bytes(), str(path))  # of which JSON ends a line at "\n" only
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} holds no questions")
    return [_question(line, f"{path}, line {number}") for number, line in lines]


def _question(line: str, place: str) -> Question:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}") from None
    if not isinstance(fields, dict) or (missing := {"question", "choices", "answer"} - set(fields)):
        missing = sorted(missing) if isinstance(fields, dict) else ["question", "choices", "answer"]
        raise UserError(f"{place} has no {' and no '.join(map(repr, missing))}")
    question, choices, answer = fields["question"], fields["choices"], fields["answer"]
    if not isinstance(question, str):
        raise UserError(f"{place}: 'question' is {question!r}, not a text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise UserError(f"{place}: 'choices' is {choices!r}, not a list of two or more texts")
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(f"{place}: 'answer' is {answer!r}, neither one of the choices nor 0 to {len(choices) - 1}")
    return Question(question, tuple(choices), answer)


def score(scorer: Scorer, questions: Sequence[Question]) -> dict[str, float]:
    """Return the shares of questions whose right choice is the likeliest.

    `acc` by its log probability after the question; `acc_norm` and `acc_bytes` by that divided by the characters and
    by the UTF-8 bytes of the choice; each with its standard error, `acc_stderr` etc.; and `questions`.
    """
    pairs = [(q.question, DELIMITER + choice) for q in questions for choice in q.choices]
    found = iter(scorer.after(pairs))
    right = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for q in questions:
        log_probs = np.array([next(found).log_prob for _ in q.choices])
        lengths = {
            "acc": 1,
            "acc_norm": np.array([len(c) for c in q.choices]),
            "acc_bytes": np.array([len(c.encode()) for c in q.choices]),
        }
        for name, length in lengths.items():
            right[name].append(float(np.argmax(log_probs / length) == q.answer))
    scores = {name: float(np.mean(each)) for name, each in right.items()}
    if len(questions) > 1:
        root = math.sqrt(len(questions))
        scores |= {f"{name}_stderr": float(np.std(each, ddof=1)) / root for name, each in right.items()}
    return scores | {"questions": len(questions)}
