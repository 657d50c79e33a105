"""What the tests of sharding share: every config made small, meshes by name, one training step on each.

Compiled programs and their results are kept for the life of the process.
"""

import dataclasses
import importlib
import pkgutil
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding

import configs
from bigjax import config, models, params, sharding
from bigjax.config import Config, TrainConfig, strict
from bigjax.preflight.equivalence.observation import COMPILE_QUICKLY, COMPILE_STEP
from bigjax.preflight.shrink import shrink
from bigjax.tasks import random_batch
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests.conftest import mesh_of

MESHES: dict[str, dict[str, Any]] = {
    "one device": {"num_devices": 1},
    "fsdp 4, tensor 2, sequence": {"data": 1, "fsdp": 4, "tensor": 2, "shard_sequence": True},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "fsdp 4, tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
}
"""`mesh_of` arguments. The first is what the others are compared with, the next splits most."""

ONE_DEVICE, *MANY_DEVICES = MESHES

SPARSE_MESHES: dict[str, dict[str, Any]] = {
    "fsdp 2, expert 2, tensor 2, sequence": {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2, "shard_sequence": True},
    "expert 8": {"data": 1, "expert": 8},
    "data 2, expert 4": {"data": 2, "expert": 4},
}
"""The same for models with experts, which run on these too. The first splits most."""


def many_devices(cfg: Config) -> list[str]:
    """Return the names of the meshes that a config is tried on, the one that splits most first."""
    names = [*SPARSE_MESHES, *MANY_DEVICES[:2]] if cfg.model.moe.num_experts else MANY_DEVICES
    # A row of one record has nothing along which to split it.
    return [name for name in names if cfg.data.seq_len > 1 or "sequence" not in name]


def discovered() -> dict[str, Config]:
    """Return every config of configs/, by `module:argument`."""
    found = {}
    for module_info in pkgutil.iter_modules(configs.__path__):
        if module_info.ispkg:  # the sweeps over them
            continue
        module = importlib.import_module(f"configs.{module_info.name}")
        if hasattr(module, "ARGUMENTS"):
            sources = {f"{module_info.name}:{argument}": module.get_config(argument) for argument in module.ARGUMENTS}
        else:
            sources = {module_info.name: module.get_config()}
        found |= {name: strict.from_dict(Config, source) for name, source in sources.items()}
    return found


def distinct(cfgs: dict[str, Config]) -> dict[str, Config]:
    """Return the first of the configs that are equal."""
    first: dict[Config, str] = {}
    for name, cfg in cfgs.items():
        first.setdefault(cfg, name)
    return {name: cfg for cfg, name in first.items()}


def by_family(cfgs: dict[str, Config]) -> list[Any]:
    """Return the names of all configs as parameters of a test; all but the first of each family are exhaustive."""
    always = {cfg.model.family: name for name, cfg in reversed(cfgs.items())}.values()
    return [pytest.param(name, marks=[] if name in always else pytest.mark.exhaustive) for name in cfgs]


def shrunk() -> dict[str, Config]:
    """Return every config of configs/ shrunk, in float32."""
    return distinct(
        {name: config.replace(shrink(cfg), model={"dtype": "float32"}) for name, cfg in discovered().items()}
    )


def abstract_mesh(mesh_cfg: config.MeshConfig, num_devices: int) -> AbstractMesh:
    """Return the mesh of devices that do not exist."""
    return sharding.abstract_mesh(sharding.mesh_shape(mesh_cfg, num_devices))


class Program(NamedTuple):
    """A training run on one mesh, compiled at the first call."""

    mesh: jax.sharding.Mesh
    layout: sharding.Layout
    model: models.Model
    tx: optax.GradientTransformation
    step: Any

    def place(self, cfg: Config) -> dict[str, jax.Array]:
        """Return `random_batch` on the mesh."""
        return sharding.put_batch(random_batch(cfg), self.mesh, cfg.train.global_batch_size)


def program(cfg: Config, mesh_name: str = ONE_DEVICE, tx: optax.GradientTransformation | None = None) -> Program:
    """Return the training step of `cfg` on a mesh, with another optimizer if given."""
    mesh_cfg, mesh = mesh_of(**{"allow_replicated": cfg.mesh.allow_replicated, **(MESHES | SPARSE_MESHES)[mesh_name]})
    cfg = dataclasses.replace(cfg, mesh=mesh_cfg)
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, mesh, model.specs)
    tx = optim.build(cfg.optim, model.specs, cfg.train.steps) if tx is None else tx
    train_step = jax.jit(step.make_train_step(cfg, model, tx, layout), compiler_options=COMPILE_STEP)
    return Program(mesh, layout, model, tx, train_step)


def initial(cfg: Config, mesh_name: str = ONE_DEVICE) -> dict[str, np.ndarray]:
    """Return the initial parameters of `cfg` computed on a mesh, by name, on the host."""
    # Options that declare no parameter are left out, so that equal parameters are drawn once.
    model = dataclasses.replace(
        cfg.model, dropout=0.0, layers="scan", remat="none", final_softcap=None, attention="auto"
    )
    train = TrainConfig(objective=cfg.train.objective)
    return _initial(Config(model=model, data=cfg.data, train=train, mesh=cfg.mesh), mesh_name)


@cache
def _initial(cfg: Config, mesh_name: str) -> dict[str, np.ndarray]:
    run = program(cfg, mesh_name, optax.identity())
    with jax.set_mesh(run.mesh):
        init = jax.jit(
            lambda: step.init_state(cfg, run.model, run.tx, run.layout).params, compiler_options=COMPILE_QUICKLY
        )
        return params.names(jax.device_get(init()))


class Result(NamedTuple):
    """What one training step did, by parameter name, on the host."""

    grads: dict[str, np.ndarray]
    updated: dict[str, np.ndarray]
    ema: dict[str, np.ndarray]
    metrics: dict[str, float]


@cache
def one_step(cfg: Config, mesh_name: str = ONE_DEVICE, update: bool = False, repeat: int = 1) -> Result:
    """Take the first step of `cfg` on a mesh, on `random_batch`, from the initial parameters of one device.

    Without `update` the step only computes gradients. It is taken `repeat` times, from the same start.
    """
    model = models.build(cfg.model)
    inner = optim.build(cfg.optim, model.specs, cfg.train.steps) if update else optax.set_to_zero()
    run = program(cfg, mesh_name, optax.chain(_record(), inner))
    with jax.set_mesh(run.mesh):
        where = jax.tree.map(lambda spec: NamedSharding(run.mesh, run.layout.param(spec)), model.specs)
        flat, tree = jax.tree.leaves(where), jax.tree.structure(where)
        values = initial(cfg).values()
        started = jax.tree.unflatten(tree, [jax.device_put(w, s) for w, s in zip(values, flat, strict=True)])
        average = started if cfg.optim.ema_decay is not None else None
        start = jax.jit(
            lambda p, ema: step.TrainState(
                jnp.zeros((), jnp.int32), p, run.tx.init(p), ema, carried=step.fresh(cfg, model, run.layout)
            ),
            compiler_options=COMPILE_QUICKLY,
        )
        state, batch = start(started, average), run.place(cfg)
        for _ in range(repeat):
            after, metrics = jax.block_until_ready(run.step(state, batch))
        trees = jax.device_get((after.opt_state[0], after.params, after.ema))
        told = ("loss", "nll", "z_loss", "tokens", "grad_norm")
        scalars = {name: float(metrics[name]) for name in told if name in metrics}
    return Result(*(params.names(tree) for tree in trees), scalars)


def _record() -> optax.GradientTransformation:
    """Return a transformation that keeps the gradients it was last given as its state."""
    return optax.GradientTransformation(
        lambda tree: jax.tree.map(jnp.zeros_like, tree), lambda grads, state, tree=None: (grads, grads)
    )
