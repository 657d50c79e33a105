"""What a task is: all that a run needs to know of what it reads, cuts, minimises, predicts and reports.

Legend: B batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigjax.config import Config, named
from bigjax.config.sections import NoFields, no_problems
from bigjax.data.cutting import Cut, text_tokenizer
from bigjax.data.errors import DataError
from bigjax.data.sources.opening import SplitSource
from bigjax.data.tokens.tokenizers import load_tokenizer
from bigjax.paths import AnyPath

if TYPE_CHECKING:
    import jax

    from bigjax.tasks.sums import Sums

Batch = dict[str, np.ndarray]
Report = tuple[dict[str, Any], str]
"""JSON-able values, and the same as text to read."""


def encoder_problems(cfg: Config) -> Iterator[str]:
    """Ask for what all tasks of an encoder that reads tokens need."""
    if cfg.train.num_loss_chunks > 1:
        yield f"train.loss_chunks={cfg.train.loss_chunks} is not for train.objective={cfg.train.objective!r}"
    if cfg.data.seq_len < 3:
        yield f"data.seq_len={cfg.data.seq_len} has no room for a token between the two that end a row"


def pair_problems(cfg: Config) -> Iterator[str]:
    """Ask for what rows of two parts, each with its token type, need."""
    objective, types = cfg.train.objective, cfg.model.token_types
    if types < 2:
        yield f"model.token_types={types} does not tell the two parts of a row apart: objective {objective!r} needs 2"
    if cfg.data.seq_len < 5:
        yield f"data.seq_len={cfg.data.seq_len} has no room for two tokens between the three that end their parts"


@dataclass(frozen=True)
class Asked:
    """A record without labels, as a task's model reads it.

    Attributes:
      rows: its rows, as many as it takes, each with arrays as `Task.rows` makes them but without the axis of a batch.
      answer: of the predictions for each row the record that answers it.
      cut: whether some of the record is in no row.
    """

    rows: Sequence[Batch]
    answer: Callable[[Sequence[np.ndarray]], dict[str, Any]]
    cut: bool = False


@dataclass(frozen=True)
class Answers:
    """How a task's `predict` answers records that have no labels.

    Attributes:
      columns: `(cfg, processor)` -> the columns that it reads of each record.
      ask: `(cfg, processor)` -> a function from the values of those columns to what is `Asked`; it raises DataError,
        which says what is wrong with the values.
      example: `(cfg)` -> an answer with the names and types of all, for the columns of a table.
      padded: the arrays of a row that are padded with 0 to the length of others.
    """

    columns: Callable[[Config, Any], tuple[str, ...]]
    ask: Callable[[Config, Any], Callable[..., Asked]]
    example: Callable[[Config], dict[str, Any]]
    padded: tuple[str, ...] = ("tokens", "segments")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      families: the families that it trains. head: the head that they need; None if
        they have no such choice.
      columns: `(cfg)` -> the column that it reads of each record, or the columns.
      rows: `(cfg, processor, cache folder, training sides)` -> a function that cuts one side of a source into `Rows`;
        it raises DataError where the processor or the sides do not suit.
      example: `(cfg, rng)` -> a batch of random content as `rows` shapes it, for checks and plans, which read no data.
      loss: `(model, params, batch, cfg.train, layout=, key=)` -> `Sums`; training minimises `loss`.
      carried_loss: the same of a batch that goes on from the state in which the one before left the model, with the
        state after it; None if rows never go on.
      whole_batch: adds to a batch what the loss must know of all of it, before it is split into microbatches.
      processor: `(cfg, training sides, cache folder)` -> what turns records into numbers, the tokenizer where they are
        texts, of a run that is given none. load_processor: `(folder)` -> that of a run.
      unit: what rows consist of, `tokens`; or `rows`, where each is one record and `data.seq_len` is 1.
      metrics: what of the loss's sums is reported as `train/NAME`; a model's own have names of their own.
      cross_entropy: whether the loss is that of `targets`, and nothing beside it, so that other libraries' can be
        compared with it.
      continues_text: whether it predicts every next token of a text, so that what it trains can go on with one.
      whole: whether a record cannot be cut in two, so that only whole ones are held out.
      references: `(cfg, side)` -> the texts of a side with what is to be written for each; None where nothing is.
      predict: `(model, params, batch, layout=)` -> logits for every weight of a batch, `(*weights.shape, ...)`; of a
        batch without targets and weights, too.
      report: `(predictions, targets, held-out set, **options)` of all that has weight -> a `Report`.
      answers: how `predict` answers new records. Without, an encoder-decoder writes what it makes of a text, and what
        `continues_text` says how likely it is.
      head_positions: `(cfg)` -> the positions of a row that an encoder's head is applied to, None for all.
      problems: `(cfg)` -> what it asks of a config, one sentence each.
      fields: a frozen dataclass, its own fields, in the config as `task.NAME`.
    """

    families: tuple[str, ...]
    columns: Callable[[Config], str | tuple[str, ...]]
    rows: Callable[[Config, Any, Path, Sequence[SplitSource]], Cut]
    example: Callable[[Config, np.random.Generator], Batch]
    loss: "Callable[..., Sums]"
    head: str | None = "lm"
    carried_loss: "Callable[..., tuple[Sums, Any]] | None" = None
    whole_batch: "Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]] | None" = None
    processor: Callable[[Config, Sequence[SplitSource], Path], Any] = text_tokenizer
    load_processor: Callable[[AnyPath], Any] = load_tokenizer
    unit: str = "tokens"
    metrics: tuple[str, ...] = ("loss", "nll")
    cross_entropy: bool = False
    continues_text: bool = False
    whole: bool = False
    references: Callable[[Config, SplitSource], Iterator[tuple[str, str]]] | None = None
    predict: "Callable[..., jax.Array] | None" = None
    report: Callable[..., Report] | None = None
    answers: Answers | None = None
    head_positions: Callable[[Config], int | None] = lambda cfg: None
    problems: Callable[[Config], Iterator[str]] = no_problems
    fields: type = NoFields


def string(value: Any, column: str) -> str:
    """Return a value of a column that must be a text.

    Raises:
      DataError: it is not a string, or has half a surrogate pair, which stands for no character.
    """
    if not isinstance(value, str):
        raise DataError(f"{column!r} is {type(value).__name__}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):04x}"
        raise DataError(f"{column!r} has {code}, half a surrogate pair and no character: take it out") from None
    return value


def text_column(cfg: Config, tokenizer: Any) -> tuple[str, ...]:
    """Return the column of texts alone, for `Answers`."""
    del tokenizer
    return (cfg.data.text_key,)


def tokens_alone(ids: Sequence[int]) -> Batch:
    """Return a row of some tokens and nothing else."""
    return {"tokens": np.asarray(ids, np.int32), "segments": np.ones(len(ids), np.int32)}


def named_task(cfg: Config) -> Task:
    """Return the task that `train.objective` names."""
    return named.task(cfg)


def names_of(suits: Callable[[Task], Any]) -> str:
    """Return the names of bigjax's own tasks that suit, for a message."""
    return " or ".join(map(repr, named.those("train.objective", named.TASKS, suits)))


def random_batch(cfg: Config, seed: int = 0) -> Batch:
    """Return a batch of random content for the run's task, of `train.global_batch_size` rows with padding in them."""
    return named_task(cfg).example(cfg, np.random.default_rng(seed))
