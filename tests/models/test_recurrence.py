"""A recurrent layer through time: gradients against a loop that JAX differentiates, and what a mesh sends for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax import models, params
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.models.parts.recurrence import CELLS, through_time
from bigjax.preflight.plan.hlo import costs as hlo
from bigjax.sharding import UNSHARDED
from bigjax.train import step
from tests.on_meshes import program

S, B, D = 6, 3, 5


def numbers(shape: tuple[int, ...], seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def written_out(cell: str, W, bias, x_SBGE, state, mask, starts_SB):
    """The equations of `torch.nn.LSTM` and `torch.nn.GRU`, step by step."""
    out, h, c = [], state["h"], state.get("c")
    for t in range(S):
        fresh = starts_SB[t][:, None]
        h, c = jnp.where(fresh, 0, h), None if c is None else jnp.where(fresh, 0, c)
        u = (jnp.tensordot(h * mask, W, 1)).at[:, -1].add(bias)
        if c is not None:
            i, f, g, o = jnp.moveaxis(x_SBGE[t] + u, 1, 0)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        else:
            r, z = (jax.nn.sigmoid(x_SBGE[t, :, k] + u[:, k]) for k in (0, 1))
            h = (1 - z) * jnp.tanh(x_SBGE[t, :, 2] + r * u[:, 2]) + z * h
        out.append(h)
    return jnp.stack(out), {"h": h} if c is None else {"h": h, "c": c}


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_the_loop_written_out(cell):
    """With dropout of the state, documents that start in the middle, and a loss that also reads the last state.

    Float32, sums of at most 6 x 3 x 5 terms: 1e-5 is 80 times the rounding of one.
    """
    gates = len(CELLS[cell].from_input)
    state = {name: numbers((B, D), 3 + i) for i, name in enumerate(("h", "c")[: 2 if cell == "lstm" else 1])}
    given = (numbers((D, gates, D), 0), numbers((D,), 1), numbers((S, B, gates, D), 2), state)
    mask = jnp.asarray(np.random.default_rng(9).integers(0, 2, (B, D)) * 2.0, jnp.float32)
    starts = np.zeros((S, B), bool)
    starts[0, 0] = starts[3, 1] = starts[5, 2] = True
    weights, last = numbers((S, B, D), 7), numbers((B, D), 8)

    def ours(W, bias, x, state):
        out, after = through_time(CELLS[cell], W, bias, x, state, mask, jnp.asarray(starts), UNSHARDED)
        return jnp.sum(out * weights) + sum(jnp.sum(s * last) for s in after.values())

    def theirs(W, bias, x, state):
        out, after = written_out(cell, W, bias, x, state, mask, starts)
        return jnp.sum(out * weights) + sum(jnp.sum(s * last) for s in after.values())

    found, expected = (jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 2, 3)))(*given) for fn in (ours, theirs))
    for ours_, theirs_ in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours_, theirs_, rtol=1e-5, atol=1e-5)
        assert np.abs(np.asarray(theirs_)).max() > 0.1


def test_half_precision_rounds_gradients_no_more_than_its_products():
    """In bfloat16 each step rounds the state and the gradients of the gates to 8 bits, 2^-9 of them.

    Over six steps that adds up to 6 x 2 x 2^-9 = 2.3 % of the largest, were all errors to point the same way.
    """
    x, W, state = (
        numbers((S, B, 4, D), 2),
        numbers((D, 4, D), 0) / 2,
        {"h": numbers((B, D), 3), "c": numbers((B, D), 4)},
    )
    starts = jnp.zeros((S, B), bool)

    def loss(W, x, dtype):
        out, _ = through_time(CELLS["lstm"], W.astype(dtype), None, x.astype(dtype), state, None, starts, UNSHARDED)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    exact, rounded = (jax.grad(loss)(W, x, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.023 * float(jnp.abs(exact).max()))


def traffic(mesh_name: str, cell: str) -> tuple[Config, dict]:
    """Return a small config, and what one device sends in a training step by kind and mesh axes: count and bytes."""
    sizes = {"vocab_size": 64, "num_layers": 2, "d_model": 32, "tie_embeddings": False}
    model = {"family": "rnn", "rnn": {"cell": cell}, **sizes}
    cfg = Config(
        model=ModelConfig(**model, dropout=0.2),
        data=DataConfig(seq_len=24),
        train=TrainConfig(global_batch_size=16, steps=5),
    )
    run = program(cfg, mesh_name, optax.identity())
    with jax.set_mesh(run.mesh):
        state = step.abstract_state(cfg, run.model, run.tx, run.layout, run.mesh)
        text = run.step.lower(state, run.place(cfg)).compile().as_text()
    sent = hlo.collectives(hlo.parse(text), dict(run.mesh.shape))
    return cfg, {(one.kind, one.mesh_axes): (one.count, one.bytes_per_chip) for one in sent}


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_of_a_recurrent_matrix_is_summed_once_for_all_steps(cell):
    cfg, sent = traffic("data 8", cell)
    count, size = sent.pop(("all-reduce", ("data",)))
    assert not sent
    # Data parallelism sends each float32 gradient twice round a ring of 8, and besides it sums of the loss, scalars.
    parameters = params.count(models.build(cfg.model).specs)
    assert size == pytest.approx(2 * 4 * parameters * 7 / 8, abs=200)
    assert count < cfg.data.seq_len


def test_a_split_state_is_gathered_at_every_step_and_its_gradient_scattered():
    cfg, sent = traffic("fsdp 4, tensor 2", "lstm")
    steps = cfg.model.num_layers * cfg.data.seq_len
    state = 4 * (cfg.train.global_batch_size // 4) * cfg.model.d_model
    count, size = sent["all-gather", ("tensor",)]
    assert (count, size) == (steps, steps * state // 2)
    # The CPU compiler has no reduce-scatter: it sums all of it, for twice the bytes.
    assert sum(sent.get((kind, ("tensor",)), (0, 0))[0] for kind in ("all-reduce", "reduce-scatter")) >= steps
    assert sent["all-reduce", ("fsdp",)][0] < cfg.data.seq_len
