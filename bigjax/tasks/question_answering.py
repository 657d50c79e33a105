"""Predicting where in a text the answer to a question stands (encoders; Devlin et al. 2019, sections 4.2 and 4.3)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data.cutting import Cut, ends_of_rows, strings_tokenizer
from bigjax.data.rows import example as examples
from bigjax.data.rows.answers import AnswerSpans, Example, longest_question
from bigjax.data.sources.opening import SplitSource
from bigjax.data.sources.readers import OPTIONAL
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.reports import answers
from bigjax.tasks.task import Answers, Asked, Batch, Report, Task, encoder_problems, pair_problems, string


def columns(cfg: Config) -> tuple[str, ...]:
    """Return the columns of context, question, answers and where they start."""
    data = cfg.data
    return (data.text_key, data.question_key, data.answer_key, data.answer_start_key, *OPTIONAL)


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Make rows of each question, with a piece of its context each."""
    del root, training
    special = ends_of_rows(cfg, tokenizer)
    return lambda side: AnswerSpans.build(cfg, side, tokenizer, special)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return rows of one random question and its whole random context each."""
    longest = (cfg.data.seq_len - 3) // 2
    asked, read = (examples.shard(cfg, rng, length) for length in (longest, cfg.data.seq_len - 3 - longest))
    questions, contexts = (np.split(shard.tokens.astype(np.int32), shard.offsets[1:-1]) for shard in (asked, read))
    ends = np.array([np.sort(rng.integers(0, len(context), 2)) for context in contexts])
    pieces = np.array([(number, 0, len(context)) for number, context in enumerate(contexts)])
    texts, special = (tuple(questions), tuple(contexts), ()), examples.SPECIAL
    rows = AnswerSpans("random", cfg.data.seq_len, cfg.data.doc_stride, (), *texts, ends, pieces, special)
    return examples.batch(cfg, rows)


def report(
    logits_NS: np.ndarray, true_N: np.ndarray, held_out: Any, no_answer_threshold: float | None = None
) -> Report:
    """Return `exact_match` and `f1` over the questions of which a row was scored.

    Args:
      no_answer_threshold: above it, the doubt of an answer makes it empty. None is 0 where a question has no answer,
        and otherwise gives an answer to all.
    """
    del true_N
    logits_N2S, asked = logits_NS.reshape(-1, 2, logits_NS.shape[-1]), []
    found: list[answers.Found] = []
    for source in held_out.sources:
        answered = answers.answers(logits_N2S[: len(source)], source)
        logits_N2S = logits_N2S[len(source) :]
        found += answered.values()
        asked += [source.examples[number] for number in answered]
    right = [one.answers for one in asked]
    some_without = not all(right)
    threshold = (0.0 if some_without else np.inf) if no_answer_threshold is None else no_answer_threshold
    written = answers.said(found, threshold)
    measured = answers.report(written, right)
    if some_without:
        measured |= answers.best_thresholds(found, right)
    return measured, answers.peek(written, right, [one.question for one in asked])


def ask(cfg: Config, tokenizer: Tokenizer) -> Callable[..., Asked]:
    """Make rows of a question, with a piece of its context each; the answer is the best span of all of them."""
    special, data = ends_of_rows(cfg, tokenizer), cfg.data

    def asked(context: Any, question: Any) -> Asked:
        context, question = string(context, data.text_key), string(question, data.question_key)
        one = Example(context, question, (), ())
        rows = AnswerSpans.of(cfg, "", (one,), tokenizer, special)
        numbers = np.arange(len(rows))
        arrays = rows.arrays(numbers, numbers)
        lengths = arrays["segments"].sum(axis=1)
        cut = len(tokenizer.encode(question)) > longest_question(cfg)

        def answer(logits: Sequence[np.ndarray]) -> dict[str, Any]:
            found = answers.best_answers(logits, rows)
            if not found:  # the tokenizer makes nothing of the context
                return {}
            best = found[0]
            places = {"start": best.start, "end": best.end}
            doubt = {"probability": best.probability, "no_answer": best.none - best.score}
            return {"prediction": best.text, **places, **doubt}

        pieces = [{name: arrays[name][b, :n] for name in PADDED} for b, n in enumerate(lengths.tolist())]
        return Asked(pieces, answer, cut)

    return asked


PADDED = ("tokens", "segments", "types")


def answer_like(cfg: Config) -> dict[str, Any]:
    """Return what an answer is like: `no_answer` is by how much its score exceeds that of the prediction."""
    del cfg
    return {"prediction": "", "start": 0, "end": 0, "probability": 0.0, "no_answer": 0.0}


def problems(cfg: Config) -> Iterator[str]:
    """Ask for rows that have room for a question and a piece of its context, none of which is skipped."""
    yield from encoder_problems(cfg)
    yield from pair_problems(cfg)
    name, data = cfg.train.objective, cfg.data
    if cfg.train.label_smoothing:
        yield f"train.label_smoothing={cfg.train.label_smoothing} would make padding an answer of {name!r}"
    if data.doc_stride > (room := (data.seq_len - 2) // 2):
        yield (
            f"data.doc_stride={data.doc_stride} skips tokens where a question takes half of a row: with "
            f"data.seq_len={data.seq_len} it is at most {room}: set data.doc_stride={room}"
        )


TASK = Task(
    families=("encoder",),
    head="question_answering",
    columns=columns,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.encoders:question_answering"),
    processor=strings_tokenizer,
    metrics=("loss", "nll", "accuracy"),
    predict=lazy.function("bigjax.tasks.encoders:span_logits"),
    report=report,
    answers=Answers(lambda cfg, _: (cfg.data.text_key, cfg.data.question_key), ask, answer_like, PADDED),
    problems=problems,
    whole=True,
)
