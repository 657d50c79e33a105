"""Points that differ in numbers only, stacked and trained as one compiled program.

The program is the single run's own, under `jax.vmap` on each device: fields in which points differ are arrays in it. A
learning rate's schedule is a table made by the single run's, so that anything in it may differ. Legend: N points.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from bigjax import models, sharding
from bigjax.config import MESH_AXES, Config, MeshConfig
from bigjax.errors import UserError
from bigjax.science.sweeps import SCALARS, without_scalars
from bigjax.train import optimizers as optim
from bigjax.train import step
from bigjax.train.step import TrainState

SCHEDULE = tuple(f"optim.{name}" for name in ("lr", "schedule", "warmup", "decay", "end_lr_ratio"))
"""Fields of which only the table of learning rates depends; `lr` has another use in Muon."""

MAX_SEED = 2**31 - 2


class StackError(UserError):
    """A config cannot be trained beside others in one program."""


def check(cfg: Config) -> None:
    """Make sure that a config can be stacked.

    Raises:
      StackError: its model is split over devices, its batch grows, it starts from a checkpoint, its guard goes back in
        time, or its seed does not fit an int32.
    """
    split = [axis for axis in MESH_AXES if axis != "data" and cfg.mesh.sizes[axis] not in (1, -1)]
    if split:
        raise StackError(
            f"mesh.{split[0]}={getattr(cfg.mesh, split[0])}: a program of many points has each whole on one device; "
            f"set mesh.{split[0]}=1 or use another runner"
        )
    if cfg.train.ramp_batch_size:
        raise StackError(
            f"train.ramp_batch_size={cfg.train.ramp_batch_size}: these batches have one size: use another runner"
        )
    for name in ("init_from", "init_state"):
        if (start := getattr(cfg, name)) is not None:
            raise StackError(f"{name}={start!r}: a program of many points starts afresh; use another runner")
    for name in ("on_nonfinite", "on_spike"):
        if getattr(cfg.guard, name) == "rollback":
            raise StackError(f"guard.{name}='rollback' takes one run back, not all of a program: use another runner")
    if cfg.train.seed > MAX_SEED:
        raise StackError(f"train.seed={cfg.train.seed} is above {MAX_SEED}: use another runner")


def make_mesh(points: int, devices: Sequence[Any] | None = None) -> tuple[Mesh, int]:
    """Return a mesh of as few devices as share the points out most evenly, and how many points it has room for."""
    found = list(devices if devices is not None else jax.local_devices())
    each = -(-points // len(found))
    used = -(-points // each)
    return sharding.make_mesh(MeshConfig(data=used), found[:used]), used * each


class Stack:
    """The compiled program of N points, spread over the axis `data` of a mesh.

    Args:
      cfgs: of the points, equal but for `SCALARS`; the last is repeated where the mesh has more room.
    """

    def __init__(self, cfgs: Sequence[Config]):
        for cfg in cfgs:
            check(cfg)
        first = without_scalars(cfgs[0])
        if any(without_scalars(cfg) != first for cfg in cfgs):
            raise StackError("these points differ in more than numbers: one program cannot train them")
        self.mesh, self.room = make_mesh(len(cfgs))
        self.cfgs = [*cfgs, *[cfgs[-1]] * (self.room - len(cfgs))]
        self._cfg = self.cfgs[0]
        varied = [path for path in SCALARS if len({_field(cfg, path) for cfg in self.cfgs}) > 1]
        # A point alone, as the last of many may be, varies nothing; but there must be an array that says it is one.
        self.varied = varied or ["train.seed"]
        self._numbers = self._stacked_numbers()
        options: Any = {"compiler_options": step.compiler_options()}
        self._init = jax.jit(_over_points(self._one_state, (0,), self.mesh), **options)
        self._step = jax.jit(_over_points(self._one_step, (0, 0, 0), self.mesh), donate_argnums=0, **options)
        self._eval = jax.jit(_over_points(self._one_eval, (0, None, 0), self.mesh))

    def init(self) -> TrainState:
        """Return the stacked state before the first step, `(N, ...)`."""
        with jax.set_mesh(self.mesh):
            return self._init(self._numbers)

    def advance(self, state: TrainState, batches: Sequence[Mapping[str, np.ndarray]]) -> tuple[Any, dict[str, Any]]:
        """Return the stacked state after a step on each point's own batch, and its metrics `(N, ...)`."""
        arrays = {name: np.stack([batch[name] for batch in self._filled(batches)]) for name in batches[0]}
        with jax.set_mesh(self.mesh):
            return self._step(state, {name: self._put(x) for name, x in arrays.items()}, self._numbers)

    def evaluate(self, params: Any, batch: Mapping[str, np.ndarray], carried: Any) -> tuple[Any, Any]:
        """Return the stacked sums of `step.make_eval_step` on one batch for all, and what is carried on."""
        whole = NamedSharding(self.mesh, jax.P())
        with jax.set_mesh(self.mesh):
            return self._eval(params, {name: jax.device_put(x, whole) for name, x in batch.items()}, carried)

    def fresh(self) -> Any:
        """Return the stacked state of models that have read nothing, or None."""
        with jax.set_mesh(self.mesh):
            one = step.fresh(self._cfg, models.build(self._cfg.model))
        return self.put([one] * self.room)

    def put(self, trees: Sequence[Any]) -> Any:
        """Return one tree for each point stacked and spread over the mesh."""
        return jax.tree.map(lambda *xs: self._put(np.stack(jax.device_get(xs))), *self._filled(trees))

    def _put(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(x, NamedSharding(self.mesh, jax.P("data")))

    def _filled(self, ofs: Sequence[Any]) -> list[Any]:
        return [*ofs, *[ofs[-1]] * (self.room - len(ofs))]

    def _stacked_numbers(self) -> dict[str, jax.Array]:
        """Return what the points differ in, `(N,)` by path, and the learning rate of every update `(N, steps)`."""
        numbers = {}
        for path in set(self.varied) - {"optim.schedule", "optim.warmup", "optim.decay"}:
            values = [_field(cfg, path) for cfg in self.cfgs]
            kind = np.int32 if isinstance(values[0], int) else np.float32
            numbers[path] = self._put(np.array(values, kind))
        if set(self.varied) & set(SCHEDULE):
            updates = jnp.arange(self._cfg.train.steps)
            tables = [optim.rates(optim.schedule(cfg.optim, cfg.train.steps), updates) for cfg in self.cfgs]
            numbers["rates"] = self._put(np.stack(tables))
        return numbers

    def _parts(self, numbers: Mapping[str, jax.Array]) -> tuple[Config, models.Model, Any]:
        """Return config, model and optimizer of one point, its numbers as arrays."""
        cfg = _with_arrays(self._cfg, {path: x for path, x in numbers.items() if path != "rates"})
        model = models.build(cfg.model)
        rate = (lambda t: numbers["rates"][t]) if "rates" in numbers else None
        return cfg, model, optim.build(cfg.optim, model.specs, cfg.train.steps, rate)

    def _one_state(self, numbers: Mapping[str, jax.Array]) -> TrainState:
        return step.init_state(*self._parts(numbers))

    def _one_step(self, state: TrainState, batch: Mapping[str, jax.Array], numbers: Mapping[str, jax.Array]):
        return step.make_train_step(*self._parts(numbers))(state, batch)

    def _one_eval(self, params: Any, batch: Mapping[str, jax.Array], carried: Any):
        return step.make_eval_step(self._cfg, models.build(self._cfg.model))(params, batch, carried)


def _over_points(function: Any, in_axes: Any, mesh: Mesh) -> Any:
    """Return a function of one point as one of all: each device has its points to itself, and sees no mesh."""
    specs = jax.tree.map(lambda axis: jax.P() if axis is None else jax.P("data"), in_axes, is_leaf=lambda x: x is None)
    every = jax.vmap(function, in_axes=in_axes)
    return jax.shard_map(every, mesh=mesh, in_specs=specs, out_specs=jax.P("data"), check_vma=False)


def _field(cfg: Config, path: str) -> Any:
    return reduce(getattr, path.split("."), cfg)


def _with_arrays(cfg: Config, arrays: Mapping[str, Any]) -> Config:
    """Return a config whose fields at these paths are arrays; it has been checked with numbers in their place."""
    changed = copy.copy(cfg)
    for path, x in arrays.items():
        section, name = path.split(".")
        part = copy.copy(getattr(changed, section))
        object.__setattr__(part, name, x)
        object.__setattr__(changed, section, part)
    return changed
