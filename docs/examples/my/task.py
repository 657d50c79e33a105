"""The next token, with the loss scaled by a field of the task's own."""

from dataclasses import dataclass, replace

from bigjax.config.fields import bounded
from bigjax.tasks.causal_lm import TASK


@dataclass(frozen=True)
class Fields:
    """The factor on the loss."""

    factor: float = bounded(1.0, above=0)


def problems(cfg):
    if cfg.task.factor > 8:
        yield f"task.factor={cfg.task.factor} is above 8: set task.factor=8"


weighted = replace(TASK, fields=Fields, problems=problems)
