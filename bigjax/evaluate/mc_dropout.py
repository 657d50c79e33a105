"""Monte Carlo dropout (Gal & Ghahramani 2016): the mean of what a model predicts with many draws of its dropout.

Legend: B batch, S sequence, K draws.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.models import Model
from bigjax.sharding import UNSHARDED, Layout
from bigjax.tasks import losses, named_task, names_of
from bigjax.tasks.sums import Sums
from bigjax.train.step import fresh, row_numbers


class DropoutError(UserError):
    """The model has no dropout to draw, or predicts no next token."""


def make_eval_step(
    cfg: Config, model: Model, samples: int, layout: Layout = UNSHARDED
) -> Callable[..., tuple[Sums, Any]]:
    """Return `step(params, batch, carried) -> (sums, carried)` for `scoring.score`, as `step.make_eval_step` does.

    The probability of each token is the mean over `samples` forward passes with dropout on (equation 6 of "Dropout as a
    Bayesian approximation"), not that of one pass without. A draw is one for the whole evaluation: row b of every batch
    has the same masks in it, and a state that is carried on is carried on in each draw by itself.

    Raises:
      DropoutError: nothing is random, or the task does not predict every next token.
    """
    if not cfg.model.random:
        raise DropoutError("the model has no dropout to draw: model.dropout=0.0")
    if not named_task(cfg).continues_text:
        able = names_of(lambda task: task.continues_text)
        raise DropoutError(f"draws of dropout need train.objective={able}, not {cfg.train.objective!r}")

    def eval_step(params, batch: Mapping[str, jax.Array], carried_K: Any):
        inputs = {"layout": layout, "segments_BS": batch.get("segments"), "rows_B": row_numbers(batch["tokens"])}

        def draw(total_BS, index_and_carried):
            index, carried = index_and_carried
            key = draw_key(cfg, index)
            if carried is None:
                where = {"positions_BS": batch.get("positions")}
                x_BSD, _ = model.family.apply(params, batch["tokens"], model.cfg, key=key, **where, **inputs)
            else:
                goes_on = {"continues_B": batch["continues"]}
                x_BSD, carried = model.family.apply_segment(
                    params, batch["tokens"], carried, model.cfg, key=key, **goes_on, **inputs
                )
            logits_BSV = model.family.logits(params, x_BSD, model.cfg, layout)
            log_p_BS = -losses.token_nll(logits_BSV, batch["targets"])
            return jnp.logaddexp(total_BS, log_p_BS), carried

        nothing_BS = jnp.full_like(batch["weights"], -jnp.inf)
        total_BS, carried_K = jax.lax.scan(draw, nothing_BS, (jnp.arange(samples), carried_K))
        nll = jnp.sum((jnp.log(samples) - total_BS) * batch["weights"])
        sums = {"nll": (nll, batch["weights"].sum())}
        if "bytes" in batch:
            sums["nll_per_byte"] = (nll, batch["bytes"].sum())
        return sums, carried_K

    return eval_step


def draw_key(cfg: Config, index: Any) -> jax.Array:
    """Return the key of a draw; none of training's."""
    return jax.random.fold_in(jax.random.key(cfg.train.seed + 2), index)


def fresh_draws(cfg: Config, model: Model, samples: int, layout: Layout = UNSHARDED) -> Any:
    """Return what the first batch starts from: `step.fresh` once for each draw, stacked; None where it is None."""
    one = fresh(cfg, model, layout)
    return jax.tree.map(lambda x: jnp.stack([x] * samples), one)
