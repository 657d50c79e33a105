"""Predicting masked tokens of texts (encoders; Devlin et al. 2019, section 3.1)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax import lazy
from bigjax.config import Config
from bigjax.data import cutting
from bigjax.data.cutting import Cut, shard_of
from bigjax.data.errors import DataError
from bigjax.data.rows import example as examples
from bigjax.data.rows.masking import MaskedText, Masking, num_predictions
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.beside import SPELLINGS
from bigjax.data.tokens.special import special_ids
from bigjax.data.tokens.tokenizers import Tokenizer
from bigjax.tasks.reports.classification import softmax
from bigjax.tasks.task import Answers, Asked, Batch, Task, encoder_problems, string, text_column, tokens_alone


def rows(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Cut texts into rows in which tokens are masked afresh in every epoch."""
    del training
    masking = cutting.masking(cfg, tokenizer)
    return lambda side: MaskedText.build(cfg, side.source.spec, shard_of(side, tokenizer, root), masking)


def example(cfg: Config, rng: np.random.Generator) -> Batch:
    """Return masked rows of one random document each."""
    shard = examples.shard(cfg, rng, cfg.data.seq_len - 2)
    return examples.batch(cfg, MaskedText.build(cfg, "random", shard, example_masking(cfg)))


def example_masking(cfg: Config) -> Masking:
    """Return the masking of rows of random content, where no tokenizer says what is a word."""
    ordinary = np.arange(cfg.model.vocab_size, dtype=np.int32)
    return Masking(cfg.data.mask_rate, predictions(cfg), examples.SPECIAL, ordinary, None)


def predictions(cfg: Config) -> int:
    """Return how many tokens of a row are predicted."""
    return num_predictions(cfg.data.seq_len, cfg.data.mask_rate)


FILLINGS = 5
"""How many fillings of a mask are told."""


def ask(cfg: Config, tokenizer: Tokenizer) -> Callable[..., Asked]:
    """Make a row for each mask in a text, of the tokens around it where the text is longer than a row.

    A mask is `[MASK]`, or as the tokenizer spells it; the answer has the likeliest fillings of each, and the text with
    the first of them.
    """
    special = special_ids(tokenizer, ("pad", "cls", "sep", "mask"))
    cutting.check_vocabulary(cfg, tokenizer, special.values())
    mask, room = special["mask"], cfg.data.seq_len - 2
    spelt = next((name for name in SPELLINGS["mask"] if tokenizer.token_id(name) == mask), None)
    reading = tokenizer.with_special()

    def ids_of(text: str) -> np.ndarray:
        if spelt is not None:
            return reading.encode(text)
        pieces = [piece for part in text.split("[MASK]") for piece in ([mask], tokenizer.encode(part))]
        return np.concatenate(pieces[1:]).astype(np.int32)

    def asked(text: Any) -> Asked:
        text = string(text, cfg.data.text_key)
        ids = ids_of(text)
        places = np.flatnonzero(ids == mask).tolist()
        if not places:
            raise DataError(f"{cfg.data.text_key!r} has no {spelt or '[MASK]'} to be filled: put one in")
        rows = []
        for place in places:
            start = max(min(place - room // 2, len(ids) - room), 0)
            row = tokens_alone([special["cls"], *ids[start : start + room].tolist(), special["sep"]])
            rows.append({**row, "masked": np.array([place - start + 1], np.int32)})

        def answer(logits: Sequence[np.ndarray]) -> dict[str, Any]:
            fillings, filled = [], ids.copy()
            for place, logits_1V in zip(places, logits, strict=True):
                probs_V = softmax(logits_1V[0].astype(np.float64))
                best = np.argsort(-probs_V, kind="stable")[:FILLINGS].tolist()
                fillings.append(
                    [{"id": id_, "token": tokenizer.decode([id_]), "probability": float(probs_V[id_])} for id_ in best]
                )
                filled[place] = best[0]
            return {"prediction": tokenizer.decode(filled), "fillings": fillings}

        return Asked(rows, answer)

    return asked


def answer_like(cfg: Config) -> dict[str, Any]:
    """Return what an answer is like."""
    del cfg
    return {"prediction": "", "fillings": [[{"id": 0, "token": "", "probability": 0.0}]]}


ANSWERS = Answers(text_column, ask, answer_like)

TASK = Task(
    families=("encoder",),
    columns=lambda cfg: cfg.data.text_key,
    rows=rows,
    example=example,
    loss=lazy.function("bigjax.tasks.encoders:masked_lm"),
    predict=lazy.function("bigjax.tasks.encoders:masked_logits"),
    answers=ANSWERS,
    metrics=("loss", "nll", "accuracy"),
    cross_entropy=True,
    head_positions=predictions,
    problems=encoder_problems,
)
