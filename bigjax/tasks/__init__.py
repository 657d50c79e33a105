"""Tasks: what a run minimises, and all else that a run must know of it. One file a task.

Read `task` first: what a task declares. Then `causal_lm`, and any other; each ends in its `TASK`, whose name is in
`config.named.TASKS`. What computes is in `objectives` (predicting tokens) and `encoders` (tokens, texts, words and
places of encoders), on `losses`, which return `sums`, so that averages are exact under any split. `reports` measures
predictions. A config names a task and is checked by it, so a task's file does not import JAX before it computes.
"""

from bigjax.tasks.task import NoFields, Task, named_task, names_of, random_batch

__all__ = ["NoFields", "Task", "named_task", "names_of", "random_batch"]
