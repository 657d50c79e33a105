"""One step of a run again: from the nearest earlier checkpoint, or from the start, to a step that diverged."""

import json
from dataclasses import dataclass
from typing import Any

import jax

from bigjax import data, models, sharding
from bigjax.checkpoint import saving as checkpoint
from bigjax.checkpoint.reading import CheckpointMismatch
from bigjax.errors import UserError
from bigjax.paths import AnyPath
from bigjax.run.folder import RunFolder
from bigjax.run.json_files import reading
from bigjax.train import continuation, forensics, step
from bigjax.train import optimizers as optim

from .. import trained


@dataclass(frozen=True)
class Replay:
    """What a step gave then and now; `differences` has a line for every number that is not the same, bit for bit."""

    recorded: dict[str, Any]
    start: int
    observed: dict[str, Any]
    differences: tuple[str, ...]


def replay(workdir: AnyPath, name: str) -> Replay:
    """Take the steps of a run again up to that of the event `name`; writes nothing.

    Raises:
      UserError: there is no such run or event.
      DataError: the text is not what it was.
    """
    folder = RunFolder(workdir)
    cfg = folder.load_config()
    event = _read_event(folder, name)
    mesh = sharding.make_mesh(cfg.mesh)
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs)
    rows = sharding.local_rows(mesh, cfg.train.global_batch_size)
    text = data.build(cfg, rows)
    stream = text.train.leaving_out(event["left_out"])
    with jax.set_mesh(mesh), checkpoint.Checkpoints(folder.checkpoints, cfg.checkpoint) as checkpoints:
        schedule = optim.schedule(cfg.optim, cfg.train.steps, stream.ramp)
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps, schedule)
        train_step = step.jit_train_step(cfg, model, tx, layout)
        abstract = step.abstract_state(cfg, model, tx, layout, mesh)
        found = _newest_before(event["step"], checkpoints, abstract)
        if not found and cfg.init_state is not None:
            found = continuation.restore_branch(cfg, abstract)
        state = found.state if found else step.jit_init_state(cfg, model, tx, layout)()
        if not found and cfg.init_from is not None:
            state = step.with_params(state, trained.initial_params(cfg, abstract.params, text))
        start, metrics = found.step if found else 0, {}
        with stream.batches(start) as batches:
            for _ in range(start, event["step"]):
                placed = sharding.put_batch(next(batches).arrays, mesh, cfg.train.global_batch_size)
                state, metrics = train_step(state, placed)
    observed = forensics.observed(metrics)
    return Replay(event, start, observed, tuple(_differences(event, observed)))


def _read_event(folder: RunFolder, name: str) -> dict[str, Any]:
    path = folder.forensics / name / forensics.EVENT
    if not path.is_file():
        there = sorted(found.parent.name for found in folder.forensics.glob(f"*/{forensics.EVENT}"))
        raise UserError(f"{folder.path} has no event {name!r}; it has {', '.join(there) or 'none'}")
    with reading(path):
        return json.loads(path.read_text())


def _newest_before(last: int, checkpoints: checkpoint.Checkpoints, abstract: Any) -> checkpoint.Restored | None:
    """Return the newest sound checkpoint of fewer than `last` steps. It holds none of what came later, so the batches
    that were left out since do not matter."""
    for saved in reversed([found for found in checkpoints.steps() if found < last]):
        try:
            return checkpoints.restore(abstract, saved)
        except CheckpointMismatch:
            raise
        except UserError:  # damaged: an earlier one only takes longer
            continue
    return None


def _differences(event: dict[str, Any], observed: dict[str, Any]) -> list[str]:
    """Compare the recorded numbers, where JSON has NaN and infinities as strings, with those observed."""
    then = {"loss": event["loss"], "gradient norm": event["grad_norm"], **_by_module(event)}
    now = {"loss": observed["loss"], "gradient norm": observed["grad_norm"], **_by_module(observed)}
    pairs = [(name, float(then[name]), float(now[name])) for name in now]
    return [f"{name} was {a!r} and is {b!r}" for name, a, b in pairs if a != b and not (a != a and b != b)]


def _by_module(found: dict[str, Any]) -> dict[str, Any]:
    return {f"{what} of {name}": norm for name, norms in found["modules"].items() for what, norm in norms.items()}
