"""A stack of layers in stages, each on devices of its own, which work on different microbatches at the same time.

The schedule is that of `config.pipeline`. A stage hands what it has made to the next one, as GPipe does (Huang et al.
2019, section 2.2); with repeats the last one hands it to the first again, as in the interleaved schedule of Narayanan
et al. (2021, section 2.2). Backward passes are the transposes of what is here, so they come in the reversed order.

Outside, the batch is split over the stages, too. A stage brings in and takes out the microbatches of its own rows by
a stream: in every tick one of them moves from each stage to the one before it, until the first stage reads it.

Legend: B batch, S sequence, D model, L layers, P stages, Q microbatches that a stage brings in, M = P Q microbatches, R
rows of a microbatch, V repeats.
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from jax import P

from bigjax import params as param_tree
from bigjax.config import pipeline as schedule
from bigjax.sharding import Layout

Run = Callable[..., tuple[jax.Array, Any]]
"""`run(x_RSD, runs, repeat, first, rows, key)` takes a microbatch through the layers that a stage has in a repeat, of
which `first` is the first one's place in the whole stack; returns it and what the layers say of themselves, stacked.
`runs` is a tree of `(V, L / (P V), ...)` arrays, `rows` what belongs to the microbatch's rows.
"""


def through(run: Run, x_BSD: jax.Array, stacked: Any, rows: Any, key: jax.Array | None, layout: Layout):
    """Return the hidden states after all layers and what those that say something say of themselves, `(L, B, ...)`.

    Args:
      stacked: a tree of `(L, ...)` arrays, split over `stage`. rows: a tree of `(B, ...)` arrays.
    """
    stages, of_stage = layout.stages, layout.of_stage()
    here = x_BSD.shape[0] // layout.ways("batch")
    count = schedule.microbatches_a_stage(layout.pipeline_microbatches, stages, here)
    microbatches = partial(_microbatches, count=count, layout=layout)

    def everywhere(x: jax.Array) -> jax.Array:
        """Return `(M, R, ...)`, all of it in each stage: a few numbers a token, which cost less than to be sent on."""
        x_PQR = microbatches(layout.place(x, "batch", *["seq"] * (x.ndim - 1)))
        spec = jax.typeof(x_PQR).sharding.spec
        whole_PQR = jax.reshard(x_PQR, P(None, *spec[1:]))
        return jax.lax.reshape(whole_PQR, (stages * count, *x_PQR.shape[2:]), out_sharding=P(*spec[1:]))

    work = partial(_on_one_stage, run=run, stages=stages, repeats=layout.pipeline_repeats)
    # The maps of kernels and of sparse layers are inside this one, which takes only `stage` out of the compiler's
    # hands. With its check of what varies over devices on, their backward passes do not lower (JAX 0.10); a vmap over
    # the stages would need none of it, but then per-stage choices are gathers, which an explicit mesh refuses.
    mapped = jax.shard_map(
        work,
        axis_names={"stage"},
        in_specs=(P("stage"), P("stage"), P(), P()),
        out_specs=(P("stage"), P()),
        check_vma=False,
    )
    y_PQRSD, said = mapped(stacked, microbatches(x_BSD), jax.tree.map(everywhere, rows), key)
    return _rows(y_PQRSD, layout), jax.tree.map(partial(_said, layout=layout, of_stage=of_stage), said)


def _microbatches(x_B: jax.Array, count: int, layout: Layout) -> jax.Array:
    """Return `(P, Q, R, ...)`: what each device has of the batch, in `count` microbatches. Nothing moves."""
    spec = jax.typeof(x_B).sharding.spec
    own = layout.of_stage().act("batch")
    return jax.shard_map(
        lambda x: x.reshape(1, count, -1, *x.shape[1:]), in_specs=spec, out_specs=P("stage", None, *own, *spec[1:])
    )(x_B)


def _rows(x_PQR: jax.Array, layout: Layout, axis: int = 0) -> jax.Array:
    """Undo `_microbatches`, of axes from `axis` on."""
    spec = jax.typeof(x_PQR).sharding.spec
    out = P(*spec[:axis], *layout.act("batch"), *spec[axis + 3 :])

    def local(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 3 :])

    return jax.shard_map(local, in_specs=spec, out_specs=out)(x_PQR)


def _said(x: jax.Array, layout: Layout, of_stage: Layout) -> jax.Array:
    """Return what layers say of themselves, `(V, P, L / (P V), M, R, ...)`, as `(L, B, ...)`."""
    V, stages, per_run, M, R, *rest = x.shape
    batch, nothing = of_stage.act("batch"), [None] * len(rest)
    shape = (V * stages * per_run, stages, M // stages, R, *rest)
    x_LPQR = jax.lax.reshape(x, shape, out_sharding=P(None, None, None, *batch, *nothing))
    return _rows(jax.reshard(x_LPQR, P(None, "stage", None, *batch, *nothing)), layout, axis=1)


def _on_one_stage(stacked: Any, stream: jax.Array, rows: Any, key: Any, *, run: Run, stages: int, repeats: int):
    """Work through all ticks on the devices of one stage."""
    stream_QRSD, stage = stream[0], jax.lax.axis_index("stage")
    Q, last = stream_QRSD.shape[0], stages - 1
    M = stages * Q
    runs = jax.tree.map(partial(_in_turn, stage=stage, stages=stages, repeats=repeats), stacked)
    layers_a_run = param_tree.num_layers(stacked) // repeats
    onward, back = [(i, i + 1) for i in range(last)], [(i + 1, i) for i in range(last)]
    moved_since = last // Q  # how often a place of the stream moves while a microbatch passes all stages

    def tick(carry, t):
        stream_QRSD, x_RSD = carry
        first_RSD = jax.lax.dynamic_index_in_dim(stream_QRSD, t % Q, keepdims=False)
        work = t - stage  # in the bubble before 0 or beyond the last: it runs on something, and nobody looks at it
        repeat = jnp.clip(work // M, 0, repeats - 1)
        of_microbatch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, work % M, keepdims=False), rows)
        x_RSD = jnp.where(stage == 0, first_RSD, x_RSD)
        y_RSD, said = run(x_RSD, runs, repeat, (repeat * stages + stage) * layers_a_run, of_microbatch, key)
        moved = jax.lax.ppermute(first_RSD, "stage", back)
        stream_QRSD = jax.lax.dynamic_update_index_in_dim(stream_QRSD, moved, t % Q, 0)
        # What the last stage has made goes to the end of the stream, to come out at its own stage when all is done. If
        # it has another repeat before it, it goes to where it would be had it gone there as it came in, so that it is
        # read when all others have been.
        done = t >= (repeats - 1) * M + last
        again = jax.lax.ppermute(y_RSD, "stage", [(last, last - moved_since)]) if repeats > 1 and moved_since else y_RSD
        place, column = jnp.where(done, last, last - moved_since), jnp.where(done, t, t - last) % Q
        before = jax.lax.dynamic_index_in_dim(stream_QRSD, column, keepdims=False)
        made = jnp.where((stage == place) & (t >= last), jnp.where(done, y_RSD, again), before)
        stream_QRSD = jax.lax.dynamic_update_index_in_dim(stream_QRSD, made, column, 0)
        return (stream_QRSD, jax.lax.ppermute(y_RSD, "stage", onward)), said

    start = (stream_QRSD, jnp.zeros_like(stream_QRSD[0]))
    (stream_QRSD, _), said = jax.lax.scan(tick, start, jnp.arange(repeats * M + last))

    def of_work(x: jax.Array) -> jax.Array:
        """Return `(V, P, L / (P V), M, R, ...)`, of all stages, without the bubble."""
        x = jax.lax.dynamic_slice_in_dim(x, stage, repeats * M)
        x = jnp.swapaxes(x.reshape(repeats, M, *x.shape[1:]), 1, 2)[:, None]
        mine = (jnp.arange(stages) == stage).reshape(-1, *[1] * (x.ndim - 2))
        # A sum, as the gradient of a gather is not there yet where the compiler splits other axes (JAX 0.10).
        return jax.lax.psum(jnp.where(mine, x, 0), "stage")

    return jnp.roll(stream_QRSD, -last, axis=0)[None], jax.tree.map(of_work, said)


def _in_turn(w: jax.Array, stage: jax.Array, stages: int, repeats: int) -> jax.Array:
    """Return the runs of layers of this stage, `(V, L / (P V), ...)`: of all V P runs each P-th.

    They are stored as V successive ones, so that what is stored does not depend on the schedule. Run j moves from stage
    j div V to stage j mod P; in each of V turns every stage sends one and gets one.
    """
    stored = w.reshape(repeats, -1, *w.shape[1:])
    if repeats == 1:
        return stored
    # Stages whose runs go to the same ones begin at different places, so that no stage is sent two in a turn.
    alike = stages // gcd(stages, repeats)
    found = jnp.zeros_like(stored)
    for turn in range(repeats):
        sent = [(turn + s // alike) % repeats for s in range(stages)]
        runs = [s * repeats + nth for s, nth in enumerate(sent)]
        source = {run % stages: run for run in runs}
        arrived = jax.lax.ppermute(
            jax.lax.dynamic_index_in_dim(stored, jnp.array(sent)[stage], keepdims=False),
            "stage",
            [(s, run % stages) for s, run in enumerate(runs)],
        )
        repeat = jnp.array([source[s] // stages for s in range(stages)])[stage]
        found = jax.lax.dynamic_update_index_in_dim(found, arrived, repeat, 0)
    return found
