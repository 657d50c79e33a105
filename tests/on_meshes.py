"""What the tests of sharding share: every config made small, meshes by name, one training step on each.

Compiled programs are kept for the life of the process.
"""

import importlib
import pkgutil
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType

import configs
from bigjax import config, models, optim, params, sharding, step, strict
from bigjax.config import MESH_AXES, Config
from bigjax.preflight.shrink import shrink
from tests.conftest import mesh_of

MESHES = {
    "one device": {"num_devices": 1},
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "fsdp 4, tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
    "data 2, fsdp 2, tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "data 2, fsdp 2, tensor 2, sequence": {"data": 2, "fsdp": 2, "tensor": 2, "shard_sequence": True},
}
"""`mesh_of` arguments. The first is what the others are compared with."""

ONE_DEVICE, *MANY_DEVICES = MESHES

COMPILE_QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Cuts the seconds to compile a training step for a CPU to a third; which sums are formed stays the same."""


def discovered() -> dict[str, Config]:
    """Return every config of configs/, by `module:argument`."""
    found = {}
    for module_info in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f"configs.{module_info.name}")
        for argument in getattr(module, "ARGUMENTS", (None,)):
            name = module_info.name if argument is None else f"{module_info.name}:{argument}"
            found[name] = strict.from_dict(Config, module.get_config(*(() if argument is None else (argument,))))
    return found


def shrunk() -> dict[str, Config]:
    """Return every config of configs/ shrunk, in float32; of those that become equal, the first."""
    small = {name: config.replace(shrink(cfg), model={"dtype": "float32"}) for name, cfg in discovered().items()}
    first: dict[Config, str] = {}
    for name, cfg in small.items():
        first.setdefault(cfg, name)
    return {name: cfg for cfg, name in first.items()}


def abstract_mesh(mesh_cfg: config.MeshConfig, num_devices: int) -> AbstractMesh:
    """Return the mesh of devices that do not exist."""
    sizes = sharding.mesh_shape(mesh_cfg, num_devices)
    return AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))


def packed_batch(cfg: Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random rows of several documents each, with padding at the end and tokens of weight 0 in between."""
    rng = np.random.default_rng(seed)
    rows, length = cfg.train.global_batch_size, cfg.data.seq_len
    tokens = rng.integers(0, cfg.model.vocab_size, (rows, length + 1), dtype=np.int32)
    starts = (rng.random((rows, length)) < 4 / length) | (np.arange(length) == 0)
    ends = rng.integers(3 * length // 4, length + 1, rows)
    padding = np.arange(length) >= ends[:, None]
    first = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.where(padding, 0, rng.random((rows, length)) < 0.9).astype(np.float32),
        "segments": np.where(padding, 0, np.cumsum(starts, axis=1)).astype(np.int32),
        "positions": (np.arange(length) - first).astype(np.int32),
    }


def recording(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return `tx` with the gradients it was last given as the first entry of its state."""
    record = optax.GradientTransformation(
        lambda tree: jax.tree.map(jnp.zeros_like, tree), lambda grads, state, tree=None: (grads, grads)
    )
    return optax.chain(record, tx)


class Program(NamedTuple):
    """A training run that is ready to start on one mesh."""

    cfg: Config
    mesh: jax.sharding.Mesh
    layout: sharding.Layout
    model: models.Model
    init: Any
    step: Any


@cache
def program(cfg: Config, mesh_name: str = ONE_DEVICE, optimizer: bool = True) -> Program:
    """Return the initialisation and the training step of `cfg` on a mesh, to be compiled at the first call.

    Without `optimizer` a step changes no parameter.
    """
    mesh_cfg, mesh = mesh_of(**{"allow_replicated": cfg.mesh.allow_replicated, **MESHES[mesh_name]})
    cfg = config.Config(**{**vars(cfg), "mesh": mesh_cfg})
    model = models.build(cfg.model)
    layout = sharding.layout(mesh_cfg, mesh, model.specs)
    sharding.check_batch(cfg.train.global_batch_size, cfg.train.microbatches, layout)
    sharding.check_sequence(cfg.data.seq_len, layout)
    inner = optim.build(cfg.optim, model.specs, cfg.train.steps) if optimizer else optax.set_to_zero()
    tx = recording(inner)
    init = jax.jit(lambda: step.init_state(cfg, model, tx, layout), compiler_options=COMPILE_QUICKLY)
    train_step = jax.jit(step.make_train_step(cfg, model, tx, layout), compiler_options=COMPILE_QUICKLY)
    return Program(cfg, mesh, layout, model, init, train_step)


class Result(NamedTuple):
    """What one training step did, by parameter name, on the host."""

    initial: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    updated: dict[str, np.ndarray]
    ema: dict[str, np.ndarray]
    metrics: dict[str, float]


@cache
def one_step(cfg: Config, mesh_name: str = ONE_DEVICE, optimizer: bool = True) -> Result:
    """Take the first step of `cfg` on a mesh, on `packed_batch`."""
    run = program(cfg, mesh_name, optimizer)
    with jax.set_mesh(run.mesh):
        state = run.init()
        batch = sharding.put_batch(packed_batch(cfg), run.mesh, cfg.train.global_batch_size)
        after, metrics = run.step(state, batch)
        trees = jax.device_get((state.params, after.opt_state[0], after.params, after.ema))
        scalars = {name: float(metrics[name]) for name in ("loss", "nll", "z_loss", "tokens", "grad_norm")}
    return Result(*(params.names(tree) for tree in trees), scalars)
