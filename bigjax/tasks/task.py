"""What a task is: all that a run needs to know of what it reads, cuts, minimises, predicts and reports.

Legend: B batch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bigjax.config import Config, named

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), scalars; a metric of the model's own may have an array of sums. Adding both before dividing
makes averages exact under any split."""


@dataclass(frozen=True)
class NoFields:
    """A task without fields of its own."""


def no_problems(cfg: Config) -> Iterator[str]:
    """Ask nothing of a config."""
    del cfg
    return iter(())


def named_task(cfg: Config) -> "Task":
    """Return the task that `train.objective` names."""
    return named.load("train.objective", cfg.train.objective, named.TASKS)


@dataclass(frozen=True)
class Task:
    """One task. Every function takes the whole config first, unless it says otherwise.

    Attributes:
      families: the families that it trains, or that the user's own is `like`; and `head`, the head that they need.
      columns: `(cfg)` -> what it reads of each record.
      processor: `(cfg, training sides, cache folder)` -> what turns records into numbers, such as a tokenizer.
      rows: `(cfg, processor, cache folder, training sides)` -> a function that cuts one side of a source into `Rows`.
      example: `(cfg, rng)` -> a batch of random content as `rows` shapes it, for checks and plans, which read no data.
      loss: `(model, params, batch, cfg.train, layout=, key=)` -> `Sums`; training minimises `loss`.
      whole_batch: adds to a batch what the loss must know of all of it, before it is split into microbatches.
      predict: `(model, params, batch, layout=)` -> what the model says of every weight of the batch, `(B, ...)`.
      report: `(predictions, truths, held-out set, **options)` -> JSON-able values and a table to read.
      head_positions: `(cfg)` -> the positions of a row that an encoder's head is applied to, None for all.
      problems: what it asks of a config, one sentence each.
      fields: a frozen dataclass, its own fields, in the config as `task.NAME`.
    """

    families: tuple[str, ...]
    columns: Callable[[Config], Any]
    rows: Callable[..., Callable[[Any], Any]]
    example: Callable[[Config, np.random.Generator], dict[str, np.ndarray]]
    loss: Callable[..., Sums]
    head: str = "lm"
    processor: Callable[..., Any] | None = None
    whole_batch: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]] | None = None
    predict: Callable[..., jax.Array] | None = None
    report: Callable[..., tuple[dict[str, Any], str]] | None = None
    head_positions: Callable[[Config], int | None] = lambda cfg: None
    problems: Callable[[Config], Iterator[str]] = no_problems
    fields: type = NoFields
