"""The train state, one step of training, one step of evaluation."""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from bigjax import params as param_tree
from bigjax.config import Config
from bigjax.models import Model
from bigjax.sharding import UNSHARDED, Layout, axes_of_entry
from bigjax.tasks import named_task
from bigjax.tasks.sums import Sums, mean, per_count
from bigjax.train import divergence, reduction


@flax.struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      step: () int32, steps taken; those whose update was dropped count.
      params: the parameters.
      opt_state: of the optimizer; it knows the updates made.
      ema: averaged parameters, if the config asks for them.
      watch: what the guard remembers, if the config asks for it.
      carried: the state, `(B, ...)`, in which the last batch left a model that goes on from it in the next.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None
    watch: Any = None
    carried: Any = None

    @property
    def weights(self) -> Any:
        """The parameters that are evaluated and used: the averaged ones if the config asks for them."""
        return self.params if self.ema is None else self.ema


def init_state(cfg: Config, model: Model, tx: optax.GradientTransformation, layout: Layout = UNSHARDED) -> TrainState:
    """Return the state before the first step; a pure function of `train.seed`, the same bits on every mesh."""
    params = param_tree.init(model.specs, jax.random.key(cfg.train.seed))
    if layout.sizes:
        params = jax.tree.map(lambda spec, w: jax.reshard(w, layout.param(spec)), model.specs, params)
    ema = jax.tree.map(jnp.copy, params) if cfg.optim.ema_decay is not None else None
    watch, carried = divergence.init(cfg.guard), fresh(cfg, model, layout)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema, watch, carried)


def with_params(state: TrainState, params: dict[str, Any]) -> TrainState:
    """Return the state of a run that starts from these parameters, with its own where `params` has none."""
    given = param_tree.names(params)
    leaves = [given.get(name, w) for name, w in param_tree.names(state.params).items()]
    params = jax.tree.unflatten(jax.tree.structure(state.params), leaves)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema=ema)


def fresh(cfg: Config, model: Model, layout: Layout = UNSHARDED) -> Any:
    """Return the state of a model that has read nothing, for a whole batch; None of one that carries no state."""
    return model.family.initial_state(cfg.model, cfg.train.global_batch_size, layout) if cfg.carries_state else None


def jit_init_state(
    cfg: Config, model: Model, tx: optax.GradientTransformation, layout: Layout
) -> Callable[[], TrainState]:
    """Return `init_state` as a compiled function without arguments."""
    return jax.jit(lambda: init_state(cfg, model, tx, layout), compiler_options=compiler_options())


def jit_train_step(cfg: Config, model: Model, tx: optax.GradientTransformation, layout: Layout) -> Any:
    """Return `make_train_step` as a compiled function that is given its state for good."""
    train_step = make_train_step(cfg, model, tx, layout)
    return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options())


def compiler_options() -> dict[str, Any] | None:
    """Return how to compile here: a CPU's code generator is told to try less.

    For `benchmarks.train_step --workload=w1` that takes 6.9 instead of 8.8 CPU-seconds for the train step (JAX 0.10.2;
    8.2 instead of 9.7 with 0.12) and 1.3 instead of 3.1 s for the initial state; a step takes as long as before, with
    w2, too.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def compile_aside(traced: Any) -> Future:
    """Compile a traced function in a thread of its own; once the result is there, `jit`'s own calls use it.

    Much of a compilation for a CPU keeps one core busy. The initial state, or a checkpoint, is made meanwhile.
    """
    return _aside(traced.lower().compile)


def init_aside(cfg: Config, model: Model, tx: optax.GradientTransformation, layout: Layout) -> Future:
    """Make the initial state on the mesh that is set, in a thread of its own, while the step is traced and compiled."""
    mesh = jax.sharding.get_mesh()

    def make() -> TrainState:
        with jax.set_mesh(mesh):
            return jit_init_state(cfg, model, tx, layout)()

    return _aside(make)


def _aside(work: Callable[[], Any]) -> Future:
    thread = ThreadPoolExecutor(1, "aside")
    result = thread.submit(work)
    thread.shutdown(wait=False)
    return result


def abstract_state(
    cfg: Config, model: Model, tx: optax.GradientTransformation, layout: Layout, mesh: Any
) -> TrainState:
    """Return the shapes, dtypes and shardings of `init_state` on `mesh`, concrete or abstract, computing nothing.

    Optimizer state lies where its parameters do.
    """

    def on_mesh(x) -> jax.ShapeDtypeStruct:
        spec = jax.P() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.tree.map(on_mesh, jax.eval_shape(lambda: init_state(cfg, model, tx, layout)))


def make_train_step(
    cfg: Config, model: Model, tx: optax.GradientTransformation, layout: Layout = UNSHARDED
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, Any]]]:
    """Return `step(state, batch) -> (state, metrics)`, to be jitted with the state donated.

    The gradient is that of the mean loss over the weighted tokens of the whole batch, however many microbatches it is
    computed in; where none has a weight, it is 0, and so is the loss. Metrics are scalars: `loss`, `nll`, `z_loss`,
    `tokens` (weighted), `grad_norm` (before clipping), `updates` (made before this step), the verdict of
    `divergence.judge`, and two dicts by parameter: `grad_norms`, and `param_norms` before the step. What the model says
    of itself may be arrays. Where the verdict is to drop the update, all but the step and the watch stay.
    """
    objective = _objective(cfg, model, layout)
    unrolled = cfg.model.layers == "unroll"

    def sums_of(params, batch, key):
        sums, carried = objective(params, batch, key)
        return sums["loss"][0], (sums, carried)

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]):
        _check_sharded(batch, layout)
        root = jax.random.key(cfg.train.seed + 1)  # apart from the key of the initial parameters
        key = jax.random.fold_in(root, state.step) if cfg.model.random else None
        params, batch = reduction.mark(state.params, model.specs, layout), _whole_batch(cfg, batch)
        if unrolled:
            params = param_tree.map_blocks(param_tree.unstack, params)
        if state.carried is not None:
            batch = {**batch, "carried": state.carried}
        # Of a batch that grows, microbatches may be empty.
        how = {"microbatches": cfg.train.num_microbatches, "skip_empty": bool(cfg.train.ramp_batch_size)}
        sums, carried, grads = _gradients(sums_of, params, batch, key, **how)
        if unrolled:
            grads = param_tree.map_blocks(param_tree.stack, grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if cfg.optim.ema_decay is not None:
            ema = optax.incremental_update(params, ema, 1 - cfg.optim.ema_decay)
        metrics = {name: mean(total, count) for name, (total, count) in sums.items()}
        squares = _squares(grads)
        metrics["tokens"] = sums["loss"][1]
        metrics["grad_norm"] = jnp.sqrt(sum(squares.values()))
        metrics["grad_norms"] = jax.tree.map(jnp.sqrt, squares)
        metrics["param_norms"] = jax.tree.map(jnp.sqrt, _squares(state.params))
        metrics["updates"] = state.step if state.watch is None else state.step - state.watch.skipped
        watch, verdict = divergence.judge(
            cfg.guard, state.watch, metrics["loss"], metrics["grad_norm"], metrics["tokens"] > 0
        )
        if "skip" in (cfg.guard.on_nonfinite, cfg.guard.on_spike):
            # What comes of reading the batch goes, too: it may not be finite.
            before = (state.params, state.opt_state, state.ema, state.carried)
            after = (params, opt_state, ema, carried)
            params, opt_state, ema, carried = divergence.kept_if(verdict["dropped"], before, after)
        return TrainState(state.step + 1, params, opt_state, ema, watch, carried), metrics | verdict

    return train_step


def _objective(cfg: Config, model: Model, layout: Layout) -> Callable[..., tuple[Sums, Any]]:
    """Return `objective(params, batch, key) -> (sums, carried)`, where only some models carry anything."""
    task = named_task(cfg)

    def objective(params, batch, key=None):
        if cfg.carries_state and task.carried_loss:
            return task.carried_loss(model, params, batch, cfg.train, layout=layout, key=key)
        return task.loss(model, params, batch, cfg.train, layout=layout, key=key), None

    return objective


def _whole_batch(cfg: Config, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """Return a batch with what the loss must know of all of it, before it is split into microbatches."""
    whole_batch = named_task(cfg).whole_batch
    return whole_batch(batch) if whole_batch else batch


def _squares(tree: Any) -> dict[str, jax.Array]:
    """Return the sum of the squares of every parameter or gradient, by name."""
    return {name: jnp.sum(jnp.square(x)) for name, x in param_tree.names(tree).items()}


def _gradients(
    sums_of: Callable,
    params: Any,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    *,
    microbatches: int,
    skip_empty: bool,
):
    """Return the objective's sums, what it carries on, and the gradient of its mean loss, over all microbatches.

    With `skip_empty` those without weight cost nothing; of a model that carries its state on there are none.
    """
    batch = dict(batch)
    if key is not None and "rows" not in batch:
        batch["rows"] = row_numbers(batch["weights"])
    if microbatches == 1:
        _, pullback, (sums, carried) = jax.vjp(lambda p: sums_of(p, batch, key), params, has_aux=True)
        # The cotangent carries the division by the token count, which saves a pass over the gradients.
        return sums, carried, reduction.total(pullback(per_count(sums["loss"][1]))[0])

    def split(x):
        # Row r goes to microbatch r % microbatches, so every device keeps its own rows.
        return jnp.swapaxes(x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]), 0, 1)

    def join(x):
        x = jnp.swapaxes(x, 0, 1)
        return x.reshape(x.shape[0] * microbatches, *x.shape[2:])

    def accumulate(carry, microbatch):
        (_, (sums, carried)), grads = jax.value_and_grad(sums_of, has_aux=True)(params, microbatch, key)
        return jax.tree.map(jnp.add, carry, (sums, grads)), carried

    def accumulate_if_any(carry, microbatch):
        add = lambda so_far: accumulate(so_far, microbatch)[0]  # noqa: E731
        return jax.lax.cond(jnp.any(microbatch["weights"] > 0), add, lambda so_far: so_far, carry), None

    pieces = jax.tree.map(split, batch)
    shapes = jax.eval_shape(lambda p, b: sums_of(p, b, key)[1][0], params, jax.tree.map(lambda x: x[0], pieces))
    zeros: tuple[Sums, Any] = (
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        reduction.zeros(params),
    )
    (sums, grads), carried = jax.lax.scan(accumulate_if_any if skip_empty else accumulate, zeros, pieces)
    scale = per_count(sums["loss"][1])
    return sums, jax.tree.map(join, carried), jax.tree.map(lambda g: g * scale, reduction.total(grads))


def row_numbers(tokens_BS: jax.Array) -> jax.Array:
    """Return the number of each row, `(B,)`, split over devices as the tokens are."""
    rows_B, sharding = jnp.arange(tokens_BS.shape[0]), jax.typeof(tokens_BS).sharding
    return rows_B if sharding.mesh.empty else jax.reshard(rows_B, jax.P(sharding.spec[0]))


def _check_sharded(batch: Mapping[str, jax.Array], layout: Layout) -> None:
    """Fail while tracing if an array of the batch is whole on every device: no error, but N times the work."""
    expected = layout.over("batch")
    for name, x in batch.items():
        spec = jax.typeof(x).sharding.spec
        actual = axes_of_entry(spec[0] if spec else None)
        if tuple(axis for axis in actual if layout.sizes.get(axis, 1) > 1) != expected:
            raise ValueError(f"batch array {name} {x.shape} is split over {actual}, not over {expected}")


def make_eval_step(cfg: Config, model: Model, layout: Layout = UNSHARDED) -> Callable[..., tuple[Sums, Any]]:
    """Return `step(params, batch, carried=None) -> (sums, carried)`; no dropout, label smoothing or z-loss in `nll`.

    `carried` is `fresh(...)` before the first batch, and what the step before returned after.
    """
    objective = _objective(cfg, model, layout)

    def eval_step(params, batch, carried=None):
        _check_sharded(batch, layout)
        batch = _whole_batch(cfg, batch)
        return objective(params, batch if carried is None else {**batch, "carried": carried})

    return eval_step
