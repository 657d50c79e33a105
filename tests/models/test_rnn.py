"""The recurrent model: dropout masks, carried state, its part in steps and scores. Its arithmetic is in parity/."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config, models, params, sharding
from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, strict
from bigjax.errors import ConfigError
from bigjax.evaluate import mc_dropout
from bigjax.models import rnn
from bigjax.models.rnn import _Drops
from bigjax.params import init
from bigjax.preflight.equivalence.observation import COMPILE_STEP
from bigjax.science.variational import weight_decay
from bigjax.tasks import objectives, random_batch
from bigjax.train import flops, step
from bigjax.train import optimizers as optim
from configs import rnn as rnn_configs
from tests.conftest import mesh_of
from tests.models_of import changed

B, S, D, L, V = 8, 12, 16, 2, 11
MODEL = ModelConfig(family="rnn", vocab_size=V, num_layers=L, d_model=D, init_std=0.4, dropout=0.4)
CFG = Config(
    model=MODEL,
    data=DataConfig(seq_len=S, order="contiguous"),
    train=TrainConfig(global_batch_size=B, steps=4),
    optim=OptimConfig(name="adam", lr=0.01, weight_decay=0.0),
)
KEY = jax.random.key(3)
ROWS = jnp.arange(B)


def numbers(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (B, S)).astype(np.int32)


@pytest.fixture(scope="module")
def weights():
    return init(rnn.specs(MODEL), jax.random.key(0))


def some_state(seed: int = 5) -> dict[str, jax.Array]:
    return {"h": numbers((B, L, D), seed) / 2, "c": numbers((B, L, D), seed + 1)}


def test_variational_masks_are_the_same_at_every_step():
    drop, ones = _Drops(MODEL, KEY, ROWS), jnp.ones((B, S, D))
    masks = [np.asarray(drop.inputs(ones, 0)), np.asarray(drop.inputs(ones, 1)), np.asarray(drop.output(ones))]
    for mask in masks:
        assert (mask == mask[:, :1]).all()
        np.testing.assert_allclose(np.unique(mask), [0, 1 / 0.6], rtol=1e-6)
    state = drop.recurrent(B, 0, MODEL)
    assert state is not None and state.shape == (B, D)
    drawn = [mask[:, 0] for mask in masks] + [np.asarray(state), np.asarray(drop.recurrent(B, 1, MODEL))]
    assert len({mask.tobytes() for mask in drawn}) == len(drawn)
    assert all(len(np.unique(mask, axis=0)) == B for mask in drawn)
    # 5 x 8 x 16 draws: 5 standard deviations of their mean are 0.097.
    assert np.mean([mask == 0 for mask in drawn]) == pytest.approx(0.4, abs=0.097)


def test_word_types_are_dropped_by_token_and_row():
    x = jnp.ones((B, S, D))
    kept = np.asarray(_Drops(MODEL, KEY, ROWS).words(x, jnp.asarray(tokens())))
    assert (kept == kept[..., :1]).all()  # whole vectors
    fates: dict[tuple[int, int], set] = {}
    for row, position in np.ndindex(B, S):
        fates.setdefault((row, int(tokens()[row, position])), set()).add(float(kept[row, position, 0]))
    assert all(len(found) == 1 for found in fates.values())
    assert {len({fates.get((row, v), {None}).copy().pop() for row in range(B)} - {None}) for v in range(V)} >= {2}


def test_naive_masks_differ_between_steps_and_spare_words_and_state():
    cfg = changed(MODEL, dropout_kind="naive")
    drop, ones = _Drops(cfg, KEY, ROWS), jnp.ones((B, S, D))
    for mask in (drop.inputs(ones, 0), drop.output(ones)):
        assert len(np.unique(np.asarray(mask).reshape(-1, D), axis=0)) == B * S
    assert drop.recurrent(B, 0, cfg) is None
    assert drop.words(ones, jnp.asarray(tokens())) is ones


def test_a_row_has_its_masks_in_any_batch():
    some, ones = jnp.array([6, 2]), jnp.ones((B, S, D))
    whole, part = _Drops(MODEL, KEY, ROWS), _Drops(MODEL, KEY, some)
    ids = jnp.asarray(tokens())
    for of_all, of_some in (
        (whole.inputs(ones, 1), part.inputs(ones[:2], 1)),
        (whole.recurrent(B, 1, MODEL), part.recurrent(2, 1, MODEL)),
        (whole.output(ones), part.output(ones[:2])),
        (whole.words(ones, ids), part.words(ones[:2], ids[some])),
    ):
        np.testing.assert_array_equal(np.asarray(of_all)[some], of_some)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_pass_with_dropout_is_the_loop_written_out(weights):
    """Every mask, drawn once, multiplies at every step what the paper's equation 7 says."""
    drop, state = _Drops(MODEL, KEY, ROWS), some_state()
    out, after = jax.jit(lambda p, t, s: rnn.apply_segment(p, t, s, MODEL, key=KEY, rows_B=ROWS))(
        weights, tokens(), state
    )
    p = jax.tree.map(lambda w: np.asarray(w, np.float64), weights)
    x = p["embed"]["tokens"][tokens()] * np.asarray(drop.words(jnp.ones((B, S, D)), jnp.asarray(tokens())))
    for layer in range(L):
        W, U, b = (p["blocks"][name][layer] for name in ("input", "recurrent", "bias"))
        z_x, z_h = drop.inputs(jnp.ones((B, 1, D)), layer), drop.recurrent(B, layer, MODEL)
        z_x, z_h = np.asarray(z_x)[:, 0], np.asarray(z_h)
        h, c = (np.asarray(state[name][:, layer], np.float64) for name in ("h", "c"))
        written = []
        for t in range(S):
            i, f, g, o = np.moveaxis(
                np.einsum("bd,dge->bge", x[:, t] * z_x, W) + np.einsum("bd,dge->bge", h * z_h, U) + b, 1, 0
            )
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            written.append(h)
        x = np.stack(written, axis=1)
        np.testing.assert_allclose(after["h"][:, layer], h, atol=2e-5)
        np.testing.assert_allclose(after["c"][:, layer], c, atol=2e-5)
    z_o = np.asarray(drop.output(jnp.ones((B, 1, D))))
    np.testing.assert_allclose(out, x * z_o, atol=2e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_segments_give_what_the_whole_gives(cell):
    """With a document that starts inside a segment, and one that starts with a segment."""
    cfg = changed(MODEL, cell=cell)
    p = init(rnn.specs(cfg), jax.random.key(0))
    documents = np.ones((B, S), np.int32)
    documents[1, 3:] = 2
    documents[2, 5:] = 2
    whole, _ = jax.jit(lambda *xs: rnn.apply(p, xs[0], cfg, segments_BS=xs[1]))(tokens(), documents)
    state, pieces = rnn.initial_state(cfg, B), []
    for first, last in ((0, 5), (5, 6), (6, S)):
        continues = (documents[:, first] == documents[:, max(first - 1, 0)]) & (first > 0)
        x, state = rnn.apply_segment(
            p,
            jnp.asarray(tokens()[:, first:last]),
            state,
            cfg,
            continues_B=jnp.asarray(continues),
            segments_BS=jnp.asarray(documents[:, first:last]),
        )
        pieces.append(x)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-6)
    alone, _ = jax.jit(lambda x: rnn.apply(p, x, cfg))(tokens()[:, 3:])
    np.testing.assert_allclose(whole[1, 3:], alone[1], atol=1e-6)
    assert not np.allclose(whole[0, 3:], alone[0], atol=1e-3)


def test_gradients_stop_at_the_boundary(weights):
    model, batch = models.build(MODEL), {name: jnp.asarray(x) for name, x in random_batch(CFG).items()}
    batch["continues"] = jnp.ones(B, jnp.int32)

    def before(p):
        return rnn.apply_segment(p, jnp.asarray(tokens()), rnn.initial_state(MODEL, B), MODEL)[1]

    def loss(p, carried):
        return objectives.carried_lm(model, p, {**batch, "carried": carried}, CFG.train)[0]["loss"][0]

    through = jax.jit(jax.grad(lambda p: loss(p, before(p))))(weights)
    constant = jax.jit(lambda p: jax.grad(loss)(p, before(p)))(weights)
    for name, g in params.names(constant).items():
        np.testing.assert_allclose(params.names(through)[name], g, rtol=1e-5, atol=1e-5, err_msg=name)


def one_step(cfg: Config, weights, mesh_name: dict | None = None):
    """Take one step from a state that is not zero; return loss, gradient norm and the state after."""
    mesh_cfg, mesh = mesh_of(**(mesh_name or {"num_devices": 1}))
    cfg = dataclasses.replace(cfg, mesh=mesh_cfg)
    model = models.build(cfg.model)
    with jax.set_mesh(mesh):
        layout = sharding.fit(cfg, mesh, model.specs)
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
        abstract = step.abstract_state(cfg, model, tx, layout, mesh)
        state = step.jit_init_state(cfg, model, tx, layout)()
        place = lambda tree, like: jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), tree, like)  # noqa: E731
        state = dataclasses.replace(
            state, params=place(weights, abstract.params), carried=place(some_state(), abstract.carried)
        )
        batch = sharding.put_batch(random_batch(cfg), mesh, cfg.train.global_batch_size)
        train_step = jax.jit(step.make_train_step(cfg, model, tx, layout), compiler_options=COMPILE_STEP)
        after, metrics = train_step(state, batch)
        return float(metrics["loss"]), float(metrics["grad_norm"]), jax.device_get(after.carried)


@pytest.fixture(scope="module")
def on_one_device(weights):
    return one_step(CFG, weights)


@pytest.mark.sample
@pytest.mark.parametrize(
    ("mesh", "change"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
        (None, {"train": {"microbatches": 4}}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"train": {"microbatches": 2}}),
        ({"data": 8}, {"model": {"layers": "unroll", "remat": "full"}}),
    ],
    ids=str,
)
def test_a_carried_state_with_dropout_is_the_same_on_every_mesh(on_one_device, weights, mesh, change):
    """Float32, sums of up to 16 terms over 12 steps and two layers, in another order."""
    loss, norm, carried = one_step(config.replace(CFG, **change), weights, mesh)
    assert (loss, norm) == pytest.approx(on_one_device[:2], rel=1e-5)
    for name, expected in on_one_device[2].items():
        np.testing.assert_allclose(carried[name], expected, atol=1e-5)
        assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("order", ["contiguous", "shuffled"])
def test_mc_dropout_is_the_mean_of_many_passes(weights, order):
    cfg, draws = config.replace(CFG, data={"order": order}), 3
    model = models.build(cfg.model)
    eval_step = jax.jit(mc_dropout.make_eval_step(cfg, model, draws))
    carried = mc_dropout.fresh_draws(cfg, model, draws)
    states = [rnn.initial_state(MODEL, B) for _ in range(draws)]
    for seed in (0, 1):
        batch = {name: jnp.asarray(x) for name, x in random_batch(cfg, seed).items()}
        sums, carried = eval_step(weights, batch, carried)
        probabilities = []
        for k in range(draws):
            how = {"segments_BS": batch["segments"], "key": mc_dropout.draw_key(cfg, k), "rows_B": ROWS}
            if order == "contiguous":
                goes_on = batch["continues"]
                x, states[k] = rnn.apply_segment(weights, batch["tokens"], states[k], MODEL, continues_B=goes_on, **how)
            else:
                x, _ = rnn.apply(weights, batch["tokens"], MODEL, **how)
            logits = np.asarray(rnn.logits(weights, x, MODEL), np.float64)
            every = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
            probabilities.append(np.take_along_axis(every, np.asarray(batch["targets"])[..., None], -1)[..., 0])
        expected = -np.log(np.mean(probabilities, axis=0)) * np.asarray(batch["weights"])
        assert float(sums["nll"][0]) == pytest.approx(expected.sum(), rel=1e-5)
        assert float(sums["nll"][1]) == batch["weights"].sum()
    assert np.std(probabilities, axis=0).max() > 0.01


def test_mc_dropout_needs_dropout(weights):
    cfg = config.replace(CFG, model={"dropout": 0.0})
    with pytest.raises(mc_dropout.DropoutError, match="no dropout to draw"):
        mc_dropout.make_eval_step(cfg, models.build(cfg.model), 2)


def test_weight_decay_is_that_of_the_paper():
    """Gal & Ghahramani solve tau = l^2 (1 - p) / (2 N lambda) for the precision of a trained network."""
    decay = weight_decay(0.01, 0.2, 1000, 4.0)
    assert 0.01**2 * (1 - 0.2) / (2 * 1000 * decay) == pytest.approx(4.0)
    # Its gradient is what the optimizer adds: SGD with only the penalty shrinks a weight by lr * 2 lambda w.
    model = models.build(MODEL)
    cfg = OptimConfig(name="sgd", momentum=0.0, lr=0.5, schedule="constant", grad_clip=None, weight_decay=2 * decay)
    tx, w = optim.build(cfg, model.specs, 1), jax.tree.map(lambda s: jnp.ones(s.shape), model.specs)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)
    penalty = jax.grad(lambda x: decay * jnp.sum(x**2))(w["blocks"]["recurrent"])
    np.testing.assert_allclose(updates["blocks"]["recurrent"], -0.5 * penalty, rtol=1e-6)


@pytest.mark.parametrize(("size", "width", "published"), [("medium", 650, 20e6), ("large", 1500, 66e6)])
def test_published_sizes(size, width, published):
    """Gal & Ghahramani 2016, table 1: 20M and 66M parameters; two layers of four gates, and two tables."""
    cfg = strict.from_dict(Config, rnn_configs.get_config(size))
    count = params.count(models.build(cfg.model).specs)
    assert count == 2 * 10_000 * width + 2 * 4 * width * (2 * width + 1)
    assert count == pytest.approx(published, rel=0.02)
    # 6 for every parameter that a product uses: the gates' matrices and the output table.
    matrices = 10_000 * width + 2 * 8 * width**2
    assert flops.model_flops_per_token(cfg.model, models.build(cfg.model).specs, 35) == 6 * matrices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"num_heads": 8}}, "model.num_heads=8 is not for model.family='rnn'"),
        ({"model": {"positions": "rotary"}}, "model.positions='rotary' is not for model.family='rnn'"),
        ({"model": {"attention": "splash"}}, "model.attention='splash' is not for model.family='rnn'"),
        ({"model": {"remat": "save:qkv"}}, "model.remat='save:qkv' is not for model.family='rnn'"),
        (
            {"model": {"rnn.dropout_kind": "naive", "rnn.recurrent_dropout": 0.1}},
            "model.rnn.recurrent_dropout=0.1 needs",
        ),
        ({"data": {"weights": (1.0,)}}, "data.weights=(1.0,) mix shuffled rows"),
        ({"train": {"objective": "masked_lm"}}, "data.order='contiguous' needs train.objective='causal_lm'"),
    ],
)
def test_fields_that_make_no_sense_are_named(changes, message):
    with pytest.raises(ConfigError) as error:
        config.replace(CFG, **changes)
    assert message in str(error.value)
