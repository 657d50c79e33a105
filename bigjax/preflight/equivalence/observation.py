"""What one train step of a config does on one mesh, brought to the host with every device's own copy of it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from bigjax import models, params, sharding
from bigjax.config import Config, MeshConfig
from bigjax.errors import UserError
from bigjax.train import optimizers as optim
from bigjax.train import step

MEANS = ("loss", "nll", "z_loss")
"""The losses that are compared, means over what has weight."""

COMPILE_QUICKLY: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""Halves the seconds a program takes to compile for a CPU; what it sums in which order stays the same."""

COMPILE_STEP = COMPILE_QUICKLY | ({"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {})
"""Halves them again, where the option exists. It rounds differently on every mesh, so it is not for initial bits."""

Piece = tuple[tuple[slice, ...], np.ndarray]
"""Where a device's part lies in the whole, and the part."""


class MeshFailure(Exception):
    """A mesh on which the step cannot be traced, compiled or run; `stage` says which."""

    def __init__(self, stage: str, error: Exception):
        lines = str(error).strip().splitlines() or [""]
        super().__init__(f"{type(error).__name__}: {lines[0]}")
        self.stage = stage


class Recorded(NamedTuple):
    """Optimizer state that also keeps the gradients it was given, and what Adam with eps makes of them."""

    inner: Any
    grads: Any
    scaled: Any
    eps: jax.Array


def recording(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return `inner`, keeping beside its state the gradients and one step of Adam (b1 = b2 = 0) on them.

    That step is g / (|g| + eps): the sign of g where eps is small, as in training, so that a gradient 8 times too large
    goes unseen. With eps as large as the largest gradient it lies in [-1/2, 1/2], and its slope in g between
    1 / (4 eps) and 1 / eps: errors of scale show.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Recorded(inner.init(params), zeros, zeros, jnp.ones((), jnp.float32))

    def update(updates, state: Any, params=None):
        grads = updates
        updates, inner_state = inner.update(grads, state.inner, params)
        adam = optax.scale_by_adam(b1=0.0, b2=0.0, eps=state.eps)
        scaled, _ = adam.update(grads, adam.init(grads))
        return updates, Recorded(inner_state, grads, scaled, state.eps)

    return optax.GradientTransformation(init, update)


class Observation(NamedTuple):
    """The step's arrays by name, each as the parts that the devices hold, copies included.

    Attributes:
      batch: the global batch. losses: those of `MEANS` that the task has, and the number of weighted
        `tokens`. grads: gradients. scaled: as in `recording`.
      updated: parameters after the step.
    """

    batch: dict[str, list[Piece]]
    losses: dict[str, list[Piece]]
    grads: dict[str, list[Piece]]
    scaled: dict[str, list[Piece]]
    updated: dict[str, list[Piece]]


class Stage:
    """A config on a mesh of the devices at hand: its initial state and its compiled step."""

    def __init__(self, cfg: Config, mesh_cfg: MeshConfig, devices: list[Any]):
        """Check that `cfg` fits the mesh.

        Raises:
          ShardingError: it does not.
        """
        self.cfg = dataclasses.replace(cfg, mesh=mesh_cfg)
        self.mesh = sharding.make_mesh(mesh_cfg, devices)
        self.model = models.build(cfg.model)
        self.layout = sharding.fit(self.cfg, self.mesh, self.model.specs)
        self.inner = optim.build(cfg.optim, self.model.specs, cfg.train.steps)
        self.tx = recording(self.inner)
        self._state: Any = None
        self._step: Any = None
        self._update: Any = None

    def initial(self) -> dict[str, list[Piece]]:
        """Return the initial parameters.

        Raises:
          MeshFailure: they cannot be computed.
        """
        with jax.set_mesh(self.mesh):
            init = jax.jit(
                lambda: step.init_state(self.cfg, self.model, self.tx, self.layout),
                compiler_options=compiler_options(COMPILE_QUICKLY),
            )
            self._state = _attempt("initialise", lambda: jax.block_until_ready(init()))
        return named_pieces(self._state.params)

    def observe(self, values: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray], eps: float) -> Observation:
        """Take one step from the parameters `values`; call `initial` first.

        Raises:
          MeshFailure: the step cannot be traced, compiled or run.
        """
        with jax.set_mesh(self.mesh):
            placed = sharding.put_batch(batch, self.mesh, self.cfg.train.global_batch_size)
            tree = self.place(values)
            scale = jax.device_put(np.float32(eps), NamedSharding(self.mesh, jax.P()))
            state = self._state.replace(
                params=tree,
                opt_state=self._state.opt_state._replace(eps=scale),
                ema=None if self._state.ema is None else tree,
            )
            if self._step is None:
                train_step = jax.jit(step.make_train_step(self.cfg, self.model, self.tx, self.layout))
                lowered = _attempt("trace", lambda: train_step.lower(state, placed))
                self._step = _attempt("compile", lambda: lowered.compile(compiler_options()))
            after, metrics = _attempt("run", lambda: jax.block_until_ready(self._step(state, placed)))
        losses = {name: metrics[name] for name in ("tokens", *MEANS) if name in metrics}
        recorded = after.opt_state
        return Observation(*map(named_pieces, (placed, losses, recorded.grads, recorded.scaled, after.params)))

    def update(self, grads: Any, start: Any) -> tuple[Any, Any]:
        """Return what the config's optimizer alone, in its initial state, makes of gradients."""
        if self._update is None:
            self._update = jax.jit(
                lambda g, p: self.inner.update(g, self.inner.init(p), p), compiler_options=compiler_options()
            )
        return self._update(grads, start)

    def place(self, values: Mapping[str, np.ndarray]) -> Any:
        """Put parameters by name where the layout stores them."""
        leaves, tree = jax.tree.flatten(self.model.specs)
        names = params.names(self.model.specs)
        where = [NamedSharding(self.mesh, self.layout.param(spec) or jax.P()) for spec in leaves]
        return jax.tree.unflatten(
            tree, [jax.device_put(values[name], at) for name, at in zip(names, where, strict=True)]
        )


def compiler_options(on_cpus: dict[str, Any] = COMPILE_STEP) -> dict[str, Any] | None:
    """Return what makes a step compile quickly here."""
    return on_cpus if jax.default_backend() == "cpu" else None


def _attempt(stage: str, do: Callable[[], Any]) -> Any:
    try:
        return do()
    except UserError:  # says itself what does not fit
        raise
    except Exception as error:  # whatever JAX or a model raises here is a finding about the mesh
        raise MeshFailure(stage, error) from error


def named_pieces(tree: Any) -> dict[str, list[Piece]]:
    """Return every array of a nested dict by path, in the parts that its devices hold."""
    return {
        name: [(shard.index, np.asarray(shard.data)) for shard in array.addressable_shards]
        for name, array in params.names(tree).items()
    }


def whole(pieces: Iterable[Piece], shape: tuple[int, ...]) -> np.ndarray:
    """Put the parts together; of several copies the last one counts."""
    found = None
    for index, part in pieces:
        found = np.zeros(shape, part.dtype) if found is None else found
        found[index] = part
    assert found is not None
    return found


def distance(pieces: Iterable[Piece], expected: np.ndarray) -> float:
    """Return the 2-norm of the difference to `expected`, of the worst copy of every part; infinite if not finite."""
    squares: dict[str, float] = {}
    for index, part in pieces:
        where = str(index)
        error = np.sum(np.square(part.astype(np.float64) - expected[index].astype(np.float64)))
        squares[where] = max(squares.get(where, 0.0), float(error) if np.isfinite(error) else np.inf)
    return float(np.sqrt(sum(squares.values())))
