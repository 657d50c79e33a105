"""Scores of a model on a set of batches."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from bigjax import sharding
from bigjax.config import Config
from bigjax.data import Batch, EvalSet
from bigjax.errors import UserError
from bigjax.models import Model
from bigjax.run import metrics
from bigjax.sharding import Layout
from bigjax.train import step

NOTHING: Mapping[str, EvalSet] = MappingProxyType({})


def evaluator(
    cfg: Config, model: Model, layout: Layout, held_out: EvalSet | None, apart: Mapping[str, EvalSet] = NOTHING
) -> Callable[[step.TrainState], dict[str, float]]:
    """Return the function from a train state to the `score` of its weights on `held_out`, empty if that is None.

    It scores `train.eval_batches` batches, and as many of each set in `apart`, whose scores are `NAME/loss` and so on.
    Programs are compiled when they are first needed.
    """
    eval_step = jax.jit(step.make_eval_step(cfg, model, layout))
    fresh = jax.jit(lambda: step.fresh(cfg, model, layout))

    def evaluate(state: step.TrainState) -> dict[str, float]:
        if held_out is None:
            return {}

        def scored(some: EvalSet) -> dict[str, float]:
            batches = some.batches(cfg.train.eval_batches)
            return score(eval_step, state.weights, batches, cfg.train.global_batch_size, fresh())

        each = {f"{name}/{key}": value for name, some in apart.items() for key, value in scored(some).items()}
        return scored(held_out) | each

    return evaluate


def score(
    eval_step: Callable[..., tuple[metrics.Sums, Any]],
    params: Any,
    batches: Iterable[Batch],
    global_batch_size: int,
    carried: Any = None,
) -> dict[str, float]:
    """Return averages over all batches: `loss` in nats per token, `perplexity`, and `tokens`, how many were scored.

    With `bytes` in the batches also `bits_per_byte`: bits over the bytes that the scored tokens stand for; and what
    else the objective measures, such as `accuracy`. The loss is the negative log likelihood alone, without label
    smoothing, z-loss or what the model adds to it. Of a task without one, `loss` is its own, and `rows` are counted.

    Args:
      eval_step: as `step.make_eval_step` makes it. carried: what it starts from, `step.fresh`.

    Raises:
      UserError: the batches hold nothing to predict.
    """
    mesh = jax.sharding.get_mesh()
    totals: metrics.Sums | None = None
    for batch in batches:
        sums, carried = eval_step(params, sharding.put_batch(batch.arrays, mesh, global_batch_size), carried)
        totals = sums if totals is None else metrics.add(totals, sums)
    return scores_of(totals or {})


def scores_of(totals: metrics.Sums) -> dict[str, float]:
    """Return what `score` does of the sums over all batches; what is counted in none of them is left out.

    Raises:
      UserError: there is nothing to predict in them.
    """
    counted = {name: sums for name, sums in jax.device_get(dict(totals)).items() if sums[1] > 0}
    if not {"nll", "loss"} & set(counted):
        raise UserError(
            "nothing to evaluate: the batches hold no token, row or word to predict; score longer documents, or more "
            "batches"
        )
    means = metrics.means(counted)
    if "nll" in means:
        loss = means["nll"]
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": float(totals["nll"][1])}
    else:  # of numbers, which have no likelihood
        scores = {"loss": means["loss"], "rows": float(totals["loss"][1])}
    if "nll_per_byte" in means:
        scores["bits_per_byte"] = means.pop("nll_per_byte") / math.log(2)
    return scores | {name: value for name, value in means.items() if name not in ("loss", "nll", "z_loss")}
