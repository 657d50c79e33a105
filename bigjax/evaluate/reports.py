"""What `experiments.evaluate` reports of a task beyond its loss, from the predictions on all rows of a split."""

import inspect
from typing import Any

import jax
import numpy as np

from bigjax import sharding
from bigjax.config import Config
from bigjax.data import EvalSet
from bigjax.errors import UserError
from bigjax.models import Model
from bigjax.sharding import Layout
from bigjax.tasks import Task, named_task, names_of


def check_options(cfg: Config, **options: Any) -> None:
    """Raise UserError for an option, other than None, that the report of the run's task does not take."""
    for name, value in options.items():
        if value is not None and not _takes(named_task(cfg), name):
            able = names_of(lambda task, name=name: _takes(task, name))
            raise UserError(f"--{name} is for train.objective={able}, not {cfg.train.objective!r}")


def _takes(task: Task, option: str) -> bool:
    return task.report is not None and option in inspect.signature(task.report).parameters


def measure(
    cfg: Config, model: Model, weights: Any, texts: EvalSet, layout: Layout, limit: int = 0, **options: Any
) -> tuple[dict[str, Any], str]:
    """Return what is measured on a split, or its first `limit` batches, as JSON-able values and as text to read.

    `options` are those of the task's report; None is none.

    Every process must call this; all get the same. Empty for a task that has no report.
    """
    predict, report = named_task(cfg).predict, named_task(cfg).report
    if predict is None or report is None:
        return {}, ""
    batch_size, mesh = cfg.train.global_batch_size, jax.sharding.get_mesh()

    @jax.jit
    def everywhere(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits = predict(model, params, batch, layout=layout)
        return jax.reshard(logits, jax.P()) if layout.sizes else logits

    given = {name: value for name, value in options.items() if value is not None}
    found, true = [], []
    for batch in texts.batches(limit):
        arrays = sharding.put_batch(batch.arrays, mesh, batch_size)
        targets, weighted = (np.asarray(jax.reshard(arrays[name], jax.P())) for name in ("targets", "weights"))
        found.append(np.asarray(everywhere(weights, arrays))[weighted > 0])
        true.append(targets[weighted > 0])
    return report(np.concatenate(found), np.concatenate(true), texts, **given)
