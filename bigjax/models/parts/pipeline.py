"""A stack of layers in stages, each on devices of its own, which work on different microbatches at the same time.

The schedule is that of `config.pipeline`. A stage hands what it has made to the next one, as GPipe does (Huang et al.
2019, section 2.2); with repeats the last one hands it to the first again, as in the interleaved schedule of Narayanan
et al. (2021, section 2.2). Backward passes are the transposes of what is here, so they come in the reversed order.

Outside, the batch is split over the stages, too. A stage brings in and takes out the microbatches of its own rows by
a stream: in every tick one of them moves from each stage to the one before it, until the first stage reads it.

An array has an axis P of stages, one a device. What stages do alike is a vmap over it, and what they do each in its own
way a `shard_map` over all mesh axes. One `shard_map` over `stage` alone would be simpler, but JAX 0.10 gathers all that
enters one from all other axes of an explicit mesh: every device would hold its stage's weights whole.

Legend: B batch, S sequence, D model, L layers, P stages, Q microbatches that a stage brings in, M = P Q microbatches, R
rows of a microbatch, V repeats, K = L / (P V) layers of a run.
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bigjax.config import pipeline as schedule
from bigjax.sharding import Layout

Run = Callable[..., tuple[jax.Array, Any]]
"""`run(x_PRSD, repeat_P, rows)` takes a microbatch through the layers that each stage has in a repeat; returns it and
what the layers say of themselves, a tree of `(K, P, R, ...)`. `rows` is a tree of `(P, R, ...)`.
"""


def through(run: Run, x_BSD: jax.Array, rows: Any, layout: Layout) -> tuple[jax.Array, Any]:
    """Return the hidden states after all layers and what those that say something say of themselves, `(L, B, ...)`.

    Args:
      rows: a tree of `(B, ...)` arrays, what belongs to each row.
    """
    stages, repeats, last = layout.stages, layout.pipeline_repeats, layout.stages - 1
    here = x_BSD.shape[0] // layout.ways("batch")
    Q = schedule.microbatches_a_stage(layout.pipeline_microbatches, stages, here)
    M = stages * Q
    stream_PQRSD = _microbatches(x_BSD, Q, layout)
    rows_MR = jax.tree.map(partial(_everywhere, count=Q, layout=layout), rows)
    stage_P = jax.reshard(jnp.arange(stages), PartitionSpec("stage"))
    moved_since = last // Q  # how often a place of the stream moves while a microbatch passes all stages

    def at(stages_P: jax.Array) -> jax.Array:
        return stages_P.reshape(stages, *[1] * x_BSD.ndim)

    def tick(carry, t):
        stream_PQRSD, x_PRSD = carry
        first = jax.lax.dynamic_index_in_dim(stream_PQRSD, t % Q, axis=1, keepdims=False)
        work_P = t - stage_P  # in the bubble before 0 or beyond the last: it runs on something, and nobody looks at it
        repeat_P = jnp.clip(work_P // M, 0, repeats - 1)
        of_microbatch = jax.tree.map(lambda x: _of_each_stage(x, work_P % M), rows_MR)
        y_PRSD, said = run(jnp.where(at(stage_P == 0), first, x_PRSD), repeat_P, of_microbatch)
        moved = _sent(first, {s: s - 1 for s in range(1, stages)})
        stream_PQRSD = jax.lax.dynamic_update_index_in_dim(stream_PQRSD, moved, t % Q, 1)
        # What the last stage has made goes to the end of the stream, to come out at its own stage when all is done. If
        # it has another repeat before it, it goes to where it would be had it gone there as it came in, so that it is
        # read when all others have been.
        done = t >= (repeats - 1) * M + last
        again = _sent(y_PRSD, {last: last - moved_since}) if repeats > 1 and moved_since else y_PRSD
        place, column = jnp.where(done, last, last - moved_since), jnp.where(done, t, t - last) % Q
        before = jax.lax.dynamic_index_in_dim(stream_PQRSD, column, axis=1, keepdims=False)
        made = jnp.where(at((stage_P == place) & (t >= last)), jnp.where(done, y_PRSD, again), before)
        stream_PQRSD = jax.lax.dynamic_update_index_in_dim(stream_PQRSD, made, column, 1)
        return (stream_PQRSD, _sent(y_PRSD, {s: s + 1 for s in range(last)})), said

    start = (stream_PQRSD, jnp.zeros_like(stream_PQRSD[:, 0]))
    (stream_PQRSD, _), said = jax.lax.scan(tick, start, jnp.arange(schedule.ticks(stages, M, repeats)))
    said = jax.tree.map(partial(_said, repeats=repeats, count=M, layout=layout), said)
    return _rows(jnp.roll(stream_PQRSD, -last, axis=1), layout), said


def runs(w: jax.Array, layout: Layout) -> jax.Array:
    """Return the runs of layers of each stage, `(V, K, P, ...)`: of all V P runs of `(L, ...)` each P-th."""
    spec = jax.typeof(w).sharding.spec
    local = partial(_in_turn, stages=layout.stages, repeats=layout.pipeline_repeats)
    return jax.shard_map(local, in_specs=spec, out_specs=PartitionSpec(None, None, *spec))(w)


def of_repeat(w: jax.Array, repeat_P: jax.Array, first: jax.Array, size: int) -> jax.Array:
    """Return `size` layers from `first` on of the repeat that each stage is in, `(size, P, ...)`, of `runs`."""
    spec = jax.typeof(w).sharding.spec

    def local(w: jax.Array, repeat: jax.Array, first: jax.Array) -> jax.Array:
        start = (repeat[0], first, *[0] * (w.ndim - 2))
        return jax.lax.dynamic_slice(w, start, (1, size, *w.shape[2:]))[0]

    mapped = jax.shard_map(
        local, in_specs=(spec, PartitionSpec("stage"), PartitionSpec()), out_specs=PartitionSpec(*spec[1:])
    )
    return mapped(w, repeat_P, first)


def _in_turn(w: jax.Array, stages: int, repeats: int) -> jax.Array:
    """Return a stage's own `(V, K, 1, ...)` of what it stores.

    Runs are stored as V successive ones, so that what is stored does not depend on the schedule. Run j moves from stage
    j div V to stage j mod P; in each of V turns every stage sends one and gets one.
    """
    stored = w.reshape(repeats, -1, 1, *w.shape[1:])
    if repeats == 1:
        return stored
    # Stages whose runs go to the same ones begin at different places, so that no stage is sent two in a turn.
    alike, stage = stages // gcd(stages, repeats), jax.lax.axis_index("stage")
    found = jnp.zeros_like(stored)
    for turn in range(repeats):
        sent = [(turn + s // alike) % repeats for s in range(stages)]
        run_of = [s * repeats + nth for s, nth in enumerate(sent)]
        arrived = jax.lax.ppermute(
            jax.lax.dynamic_index_in_dim(stored, jnp.array(sent)[stage], keepdims=False),
            "stage",
            [(s, run % stages) for s, run in enumerate(run_of)],
        )
        repeat_of = {run % stages: run // stages for run in run_of}
        repeat = jnp.array([repeat_of[s] for s in range(stages)])[stage]
        found = jax.lax.dynamic_update_index_in_dim(found, arrived, repeat, 0)
    return found


def _sent(x_P: jax.Array, to: dict[int, int]) -> jax.Array:
    """Return what stages are sent by others, zeros where that is nothing."""
    spec = jax.typeof(x_P).sharding.spec
    send = partial(jax.lax.ppermute, axis_name="stage", perm=list(to.items()))
    return jax.shard_map(send, in_specs=spec, out_specs=spec)(x_P)


def _microbatches(x_B: jax.Array, count: int, layout: Layout) -> jax.Array:
    """Return `(P, Q, R, ...)`: what each device has of the batch, in `count` microbatches. Nothing moves."""
    spec = jax.typeof(x_B).sharding.spec
    out = PartitionSpec("stage", None, *(layout.of_stage().act("batch") or ()), *spec[1:])
    return jax.shard_map(lambda x: x.reshape(1, count, -1, *x.shape[1:]), in_specs=spec, out_specs=out)(x_B)


def _rows(x_PQR: jax.Array, layout: Layout, axis: int = 0) -> jax.Array:
    """Undo `_microbatches`, of axes from `axis` on."""
    spec = jax.typeof(x_PQR).sharding.spec
    out = PartitionSpec(*spec[:axis], *(layout.act("batch") or ()), *spec[axis + 3 :])
    join = lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 3 :])  # noqa: E731
    return jax.shard_map(join, in_specs=spec, out_specs=out)(x_PQR)


def _everywhere(x_B: jax.Array, count: int, layout: Layout) -> jax.Array:
    """Return `(M, R, ...)`, all of it in each stage: a few numbers a token, which cost less than to be sent on."""
    x_PQR = _microbatches(layout.place(x_B, "batch", *["seq"] * (x_B.ndim - 1)), count, layout)
    _, _, *spec = jax.typeof(x_PQR).sharding.spec
    whole = jax.reshard(x_PQR, PartitionSpec(None, None, *spec))
    shape = (layout.stages * count, *x_PQR.shape[2:])
    return jax.lax.reshape(whole, shape, out_sharding=PartitionSpec(None, *spec))


def _of_each_stage(x_M: jax.Array, nth_P: jax.Array) -> jax.Array:
    """Return the `nth_P` of each stage, `(P, ...)`."""
    spec = jax.typeof(x_M).sharding.spec
    return jax.shard_map(
        lambda x, nth: jax.lax.dynamic_index_in_dim(x, nth[0]),
        in_specs=(spec, PartitionSpec("stage")),
        out_specs=PartitionSpec("stage", *spec[1:]),
    )(x_M, nth_P)


def _said(x_T: jax.Array, repeats: int, count: int, layout: Layout) -> jax.Array:
    """Return what layers say of themselves in all ticks, `(T, K, P, R, ...)`, as `(L, B, ...)`, without the bubble."""
    spec, stages = jax.typeof(x_T).sharding.spec, layout.stages
    of_work = lambda x: jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("stage"), repeats * count)  # noqa: E731
    x = jax.shard_map(of_work, in_specs=spec, out_specs=spec)(x_T)
    x = jax.reshard(x, PartitionSpec(None, None, None, *spec[3:]))
    x_VMKPR = x.reshape(repeats, count, *x.shape[1:])
    x_VPKMR = jnp.moveaxis(x_VMKPR, 3, 1).swapaxes(2, 3)
    shape = (repeats * stages * x.shape[1], stages, count // stages, *x.shape[3:])
    x_LPQR = jax.lax.reshape(x_VPKMR, shape, out_sharding=PartitionSpec(None, None, None, *spec[3:]))
    return _rows(jax.reshard(x_LPQR, PartitionSpec(None, "stage", None, *spec[3:])), layout, axis=1)
