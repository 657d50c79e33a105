"""What `experiments.evaluate --tasks` measures, by name: written answers, chosen answers, the likelihood of texts."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigjax.config import Config
from bigjax.data.sources import opening as sources
from bigjax.errors import UserError
from bigjax.evaluate import likelihood, multiple_choice, writing
from bigjax.evaluate.likelihood import Scorer
from bigjax.evaluate.multiple_choice import Question
from bigjax.tasks.reports.texts import SCORES

FORMS = (*SCORES, "multiple_choice:FILE.jsonl", "rolling:SOURCE")
"""The forms of a task's name."""


@dataclass(frozen=True)
class Tasks:
    """What is asked: `SCORES` of answers, and by the task's whole name the questions and the source of texts."""

    scores: tuple[str, ...]
    questions: dict[str, list[Question]]
    texts: dict[str, sources.Source]

    @property
    def bring_data(self) -> bool:
        """Whether the tasks have data of their own, all of them, so that the run's is of no use."""
        return bool(self.questions or self.texts) and not self.scores


def parse(cfg: Config, names: Sequence[str]) -> Tasks:
    """Return the tasks that the names stand for, their files opened.

    Raises:
      UserError: there is no such task, the run cannot do it, or its file is wrong.
    """
    scores, questions, texts = [], {}, {}
    for name in names:
        kind, _, rest = name.partition(":")
        if kind in ("multiple_choice", "rolling") and rest:
            likelihood.check(cfg.model)
        if kind == "multiple_choice" and rest:
            questions[name] = multiple_choice.read_questions(Path(rest))
        elif kind == "rolling" and rest:
            texts[name] = sources.open_source(rest, cfg.data.text_key)
        elif name in SCORES:
            scores.append(name)
        else:
            raise UserError(f"--tasks: {name!r} is none of {', '.join(FORMS)}")
    if scores:
        writing.check_scores(cfg, scores)
    return Tasks(tuple(scores), questions, texts)


def measure(tasks: Tasks, scorer: Scorer) -> dict[str, dict[str, float]]:
    """Return the scores of the tasks that have data of their own, by their names."""
    found = {name: multiple_choice.score(scorer, questions) for name, questions in tasks.questions.items()}
    for name, source in tasks.texts.items():
        found[name] = rolling_scores(scorer, [text for _, text in source.read()])
    return found


def rolling_scores(scorer: Scorer, texts: Sequence[str]) -> dict[str, float]:
    """Return `word_perplexity`, `byte_perplexity` and `bits_per_byte` of all texts together, and how many `texts`.

    Of words there is one more than runs of space, as lm-evaluation-harness counts them. Unlike the loss on held-out
    text, this counts the first token of each text, too.

    Raises:
      UserError: there is no text, or only empty ones.
    """
    words, size = sum(len(re.split(r"\s+", text)) for text in texts), sum(len(text.encode()) for text in texts)
    if not size:
        raise UserError(f"the {len(texts)} texts of --tasks=rolling are all empty")
    total = sum(scorer.rolling(texts))
    return {
        "word_perplexity": math.exp(min(-total / words, 700.0)),
        "byte_perplexity": math.exp(min(-total / size, 700.0)),
        "bits_per_byte": -total / size / math.log(2),
        "texts": len(texts),
    }
