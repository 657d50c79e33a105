"""What a run may go on from: its own checkpoints though its length has changed, or the whole state of another run.

A constant rate, an inverse square root and the steady part of `wsd` do not depend on how long the run is, so a run that
has them can be made longer in its folder, or left at any step by a new run that decays from there: one stable run so
gives models of many token budgets (Hägele et al. 2024). Either is the straight run, bit for bit, on the same mesh.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bigjax.checkpoint.digests import complete_steps
from bigjax.config import Config, strict
from bigjax.config.lengths import lengths
from bigjax.data.batches import ramp
from bigjax.errors import UserError
from bigjax.run.folder import RunFolder

LENGTHS = ("train.steps", *(f"optim.{name}" for name in ("schedule", "warmup", "decay", "end_lr_ratio")))
"""Fields that a run may change between two starts, as long as no learning rate of the past is another."""

FREE = ("train.steps", "train.eval_batches", "data.sources", "data.eval_sources")
"""Fields of model, data and train in which a branch may differ; what the sources hold is compared by digest."""


class Origin(NamedTuple):
    """The run and the step that a branch starts from."""

    folder: RunFolder
    step: int


def origin(cfg: Config) -> Origin:
    """Return where `cfg.init_state`, RUN@STEP, starts from."""
    run, _, step = str(cfg.init_state).rpartition("@")
    return Origin(RunFolder(run), int(step))


def check_longer(folder: RunFolder, cfg: Config) -> None:
    """Make sure that a run of `cfg` may start in its folder, or go on there; write nothing.

    Raises:
      UserError: the folder belongs to another run, or has trained steps at learning rates that `cfg` does not have.
    """
    changed = folder.check(cfg, LENGTHS)
    done = max(complete_steps(folder.checkpoints), default=0)
    if not done or not set(changed) & set(LENGTHS):
        return
    if cfg.train.steps < done:
        raise UserError(
            f"{folder.path} has trained {done} steps: set train.steps={done} or more, or choose another --workdir"
        )
    before = folder.load_config()
    if (found := _first_other_rate(before, cfg, done)) is None:
        return
    update, there, here = found
    raise UserError(
        f"{folder.path} has trained {done} steps and cannot go on as this config says: the learning rate of step "
        f"{update + 1} was {there:.6g} there and would be {here:.6g} here; {_cure(folder, before, cfg, update)}"
    )


def _first_other_rate(before: Config, after: Config, done: int) -> tuple[int, float, float] | None:
    """Return the first of `done` updates at which two configs have different learning rates, and these."""
    import numpy as np

    from bigjax.train import optimizers as optim

    updates = np.arange(done, dtype=np.int32)
    there, here = (
        optim.rates(optim.schedule(cfg.optim, cfg.train.steps, ramp.build(cfg)), updates) for cfg in (before, after)
    )
    other = np.flatnonzero(there != here)
    return (int(other[0]), float(there[other[0]]), float(here[other[0]])) if len(other) else None


def _cure(folder: RunFolder, before: Config, after: Config, update: int) -> str:
    was, now = (lengths(cfg.optim, ramp.build(cfg).full_batches(cfg.train.steps))[0] for cfg in (before, after))
    if was != now:
        return f"set optim.warmup={was}, as many steps as it had there"
    if earlier := [step for step in complete_steps(folder.checkpoints) if step <= update]:
        return (
            f"set init_state={folder.path}@{earlier[-1]} and another --workdir, to branch off before the rates differ"
        )
    return "choose another --workdir for a run from the start"


def check_branch(cfg: Config) -> None:
    """Make sure that a run of `cfg` can start from the state that `cfg.init_state` names; reads no array.

    Raises:
      UserError: there is no such run or checkpoint, or the run's model, data, seed, batch or optimizer is another.
    """
    if cfg.init_state is None:
        return
    folder, step = origin(cfg)
    before = folder.load_config()
    if differing := list(_clashes(before, cfg)):
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"init_state={cfg.init_state!r} cannot be gone on from: {'; '.join(differing[:3])}{more}; set the same "
            "here, or init_from, which takes the parameters alone"
        )
    if step not in (steps := complete_steps(folder.checkpoints)):
        there = f"only of {', '.join(map(str, steps[-5:]))}" if steps else "nor any other"
        raise UserError(
            f"{folder.path} has no checkpoint of step {step}, {there}: set init_state={folder.path}@STEP to one that "
            "it has, or train it with checkpoint.keep_every_steps, which keeps more"
        )


def _clashes(before: Config, cfg: Config) -> Iterator[str]:
    """Yield what the state of one run has that a run of the other config cannot go on with."""
    for found in strict.diff(before, cfg):
        section = found.path.partition(".")[0]
        if section in ("model", "data", "train") and not found.plumbing and found.path not in FREE:
            yield f"{found.path} is {_shown(found.a)} there and {_shown(found.b)} here"
    if before.optim.name != cfg.optim.name:
        yield f"optim.name is {before.optim.name!r} there and {cfg.optim.name!r} here"
    averages = [one.optim.ema_decay for one in (before, cfg)]
    if (averages[0] is None) != (averages[1] is None):
        yield f"optim.ema_decay is {averages[0]} there and {averages[1]} here"
    windows = [_remembered(one) for one in (before, cfg)]
    if windows[0] != windows[1]:
        yield f"the guard remembers {windows[0]} steps there and {windows[1]} here (guard.window)"


def _remembered(cfg: Config) -> int:
    """Return how many steps the train state remembers for the guard, as `divergence.init` makes it."""
    return cfg.guard.window if cfg.guard.on_spike != "none" or cfg.guard.on_nonfinite == "skip" else 0


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def restore_branch(cfg: Config, abstract: Any) -> Any:
    """Return the `checkpoint.Restored` that `cfg.init_state` names, on the shardings of `abstract`.

    Raises:
      UserError: it is damaged.
      CheckpointMismatch: a path, shape or dtype differs.
    """
    from bigjax.checkpoint.saving import Checkpoints

    folder, step = origin(cfg)
    with Checkpoints(folder.checkpoints, cfg.checkpoint) as checkpoints:
        return checkpoints.restore(abstract, step)
