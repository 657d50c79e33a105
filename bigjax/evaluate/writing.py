"""What a run writes for the texts of a source: an encoder-decoder's answers, to be read or scored."""

from collections.abc import Iterator, Sequence
from typing import Any

from bigjax.config import Config
from bigjax.data import Tokenizer
from bigjax.data.cutting import ends_of
from bigjax.data.rows.pairs import Ends
from bigjax.data.sources.opening import SplitSource
from bigjax.errors import UserError
from bigjax.evaluate.beam_search import beam_search
from bigjax.evaluate.generation import generate
from bigjax.models import Model
from bigjax.sharding import Layout
from bigjax.tasks import named_task, names_of
from bigjax.tasks.reports.texts import SCORES


def prompt_of(cfg: Config, tokenizer: Tokenizer, text: str) -> tuple[list[int], Ends | None]:
    """Return the ids that a model is given for a text, and what is around an encoder-decoder's rows.

    Whether a special token that the text spells out is one is up to the tokenizer: `Tokenizer.with_special` is for what
    a user writes, and data are read as in training. A decoder continues the text, after what its tokenizer puts before
    one; an encoder-decoder reads it as in training, cut off at `data.seq_len`, with its end.
    """
    ids = tokenizer.encode(text).tolist()
    if cfg.model.kind != "encdec":
        return [*tokenizer.opening, *ids], None
    ends = ends_of(tokenizer)
    return [*ids[: cfg.data.seq_len - 1], ends.end], ends


def check_scores(cfg: Config, names: Sequence[str]) -> None:
    """Raise UserError unless the run has texts to compare with."""
    if not named_task(cfg).references:
        able = names_of(lambda task: task.references)
        raise UserError(
            f"--tasks={','.join(names)} compares what a run with train.objective={able} writes, not "
            f"{cfg.train.objective!r}"
        )


def answer(
    cfg: Config,
    model: Model,
    weights: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    beams: int = 1,
    length_penalty: float = 0.0,
    layout: Layout,
) -> list[str]:
    """Return the likeliest answers to texts, at most `data.target_len` tokens long, found with `beams` hypotheses.

    `train.global_batch_size` of them are written at a time.
    """
    prompts = [prompt_of(cfg, tokenizer, text) for text in texts]
    answers, size = [], cfg.train.global_batch_size
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        ends = batch[0][1]
        assert ends is not None
        how: dict[str, Any] = {"max_new_tokens": cfg.data.target_len, "start_id": ends.start, "eos_id": ends.end}
        ids = [prompt for prompt, _ in batch]
        if beams == 1:
            written = generate(model, weights, ids, temperature=0.0, layout=layout, **how)
        else:
            how |= {"beams": beams, "length_penalty": length_penalty}
            written = beam_search(model, weights, ids, layout=layout, **how)
        answers += map(tokenizer.decode, written)
    return answers


def pairs(cfg: Config, sides: Sequence[SplitSource]) -> Iterator[tuple[str, str]]:
    """Yield every text of the sides and what should be written for it."""
    references = named_task(cfg).references
    assert references is not None  # `check_scores`
    for side in sides:
        yield from references(cfg, side)


def score(written: Sequence[str], references: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Return the named `SCORES`, and `texts`, how many were scored."""
    return {name: SCORES[name](written, references) for name in names} | {"texts": len(written)}


def until(text: str, stops: Sequence[str]) -> str:
    """Cut a text before the first of `stops`, which other tokens than those of its own may spell."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def peek(written: Sequence[str], texts: Sequence[str], references: Sequence[str], count: int = 3) -> str:
    """Return the first few texts with what was and what should have been written."""
    rows = zip(texts[:count], written, references, strict=False)
    return "\n".join(f"{text!r}\n  wrote {said!r}\n  wanted {wanted!r}" for text, said, wanted in rows)
