"""Batches that grow: their sizes and rows, steps equal to those of a batch of that size, and runs that are resumed."""

import dataclasses
import json
from fractions import Fraction

import jax
import numpy as np
import optax
import pytest

from bigjax import config, data, models, params, sharding
from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.config.strict import ConfigError
from bigjax.data.batches import ramp as batch_ramp
from bigjax.train import optimizers as optim
from bigjax.train import step
from tests import commands
from tests.conftest import mesh_of
from tests.finished_runs import assert_same_run


def run_of(first=4, full=16, tokens=32 * 60, microbatches=1, dropout=0.0, **model) -> Config:
    return Config(
        ModelConfig(num_layers=2, d_model=32, num_heads=2, max_seq_len=32, dropout=dropout, **model),
        DataConfig(seq_len=32, document_mask=False),
        TrainConfig(
            steps=20,
            global_batch_size=full,
            microbatches=microbatches,
            ramp_batch_size=first if tokens else 0,
            ramp_tokens=tokens,
        ),
    )


@pytest.mark.parametrize(
    ("first", "full", "rows"), [(4, 16, 60), (16, 1536, 5000), (5, 17, 100), (1, 64, 7), (3, 4, 1)]
)
def test_sizes_are_linear_in_the_rows_seen(first, full, rows):
    """Against the definition, batch by batch in exact fractions: `first` times 1 + what share of the ramp is behind."""
    ramp = batch_ramp.build(run_of(first, full, 32 * rows))
    seen, increments = 0, -(-full // first) - 1
    for batch in range(200):
        share = min(Fraction(seen, rows), 1)
        wanted = min(first * (1 + int(share * increments)), full)
        assert (ramp.size(batch), ramp.rows_before(batch)) == (wanted, seen)
        assert ramp.steps_for(seen) == batch
        assert ramp.steps_for(seen + 1) == batch + 1
        seen += wanted
    assert ramp.sizes[-1] == full


@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [1, 3, 4, 9, 16])
def test_every_row_has_one_place_in_as_few_microbatches_as_hold_them(size, microbatches):
    places = batch_ramp.place(size, 16, microbatches)
    assert sorted(places.tolist()) == [*range(size), *[size] * (16 - size)]
    rows = 16 // microbatches
    filled = {place % microbatches for place in np.flatnonzero(places < size).tolist()}
    assert filled == set(range(-(-size // rows)))


def streams(tmp_path, cfg: Config, parts: int = 1) -> list[data.TextData]:
    cfg = config.replace(cfg, data={"cache_dir": str(tmp_path)})
    rows = cfg.train.global_batch_size // parts
    return [data.build(cfg, slice(i * rows, (i + 1) * rows)) for i in range(parts)]


def test_batches_are_the_order_cut_by_size_on_any_number_of_processes_and_microbatches(tmp_path):
    (constant,) = streams(tmp_path, run_of(tokens=0))
    order = constant.train.ids(0, range(16)).tolist() + constant.train.ids(1, range(16)).tolist()
    for microbatches in (1, 4):
        for parts in (1, 2):
            made = [text.train for text in streams(tmp_path, run_of(microbatches=microbatches), parts)]
            at = 0
            for number in range(4):
                batches = [stream.batch(number) for stream in made]
                ids = np.concatenate([b.ids for b in batches])
                rows = np.concatenate([b.arrays["rows"] for b in batches])
                size = made[0].size(number)
                assert ids[rows < size][np.argsort(rows[rows < size])].tolist() == order[at : at + size]
                weights = np.concatenate([b.arrays["weights"] for b in batches])
                assert (weights.any(axis=1) == (rows < size)).all()
                assert (ids[rows == size] == -1).all()
                at += size
            assert made[0].rows_taken(4) == at == sum(source["rows"] for source in made[0].state(4)["sources"])


def test_a_batch_that_is_left_out_counts_for_the_order_and_not_for_the_tokens(tmp_path):
    (text,) = streams(tmp_path, run_of())
    stream = text.train.leaving_out([1])
    assert stream.batch(1).ids.tolist() == text.train.batch(2).ids.tolist()
    assert stream.rows_taken(3) == text.train.rows_before(4) - text.train.size(1)


def test_another_ramp_is_other_data(tmp_path):
    (text,), (other,) = streams(tmp_path, run_of()), streams(tmp_path, run_of(first=8))
    text.train.check(text.train.state(3))
    with pytest.raises(data.DataError, match="the data is not that of the checkpoint at step 3: ramp was"):
        other.train.check(text.train.state(3))


def gradients(cfg: Config, batch: dict[str, np.ndarray], **mesh) -> tuple[dict, dict]:
    """Return the metrics and the gradients of a step on a batch."""
    mesh_cfg, where = mesh_of(**mesh)
    cfg = dataclasses.replace(cfg, mesh=mesh_cfg)
    model = models.build(cfg.model)
    layout = sharding.fit(cfg, where, model.specs)
    kept = optax.GradientTransformation(lambda tree: tree, lambda grads, state, tree=None: (grads, grads))
    with jax.set_mesh(where):
        state = jax.jit(lambda: step.init_state(cfg, model, kept, layout))()
        placed = sharding.put_batch(batch, where, cfg.train.global_batch_size)
        after, metrics = jax.jit(step.make_train_step(cfg, model, kept, layout))(state, placed)
        grads = params.names(jax.device_get(after.opt_state))
    return {name: float(metrics[name]) for name in ("loss", "nll", "tokens", "grad_norm")}, grads


@pytest.mark.sample
@pytest.mark.parametrize(
    ("microbatches", "mesh"),
    [(1, {"num_devices": 1}), (4, {"num_devices": 1}), (2, {"data": 2, "fsdp": 2, "tensor": 2})],
)
def test_a_step_is_that_of_a_batch_of_its_size(microbatches, mesh, tmp_path):
    """Dropout included. Float32: sums of 2^9 tokens in another order differ by about 2^4.5 machine epsilons."""
    cfg = run_of(first=3, microbatches=microbatches, dropout=0.1)
    (text,) = streams(tmp_path, cfg)
    batch = text.train.batch(6)
    size = text.train.size(6)
    assert size == 9  # which leaves empty places in microbatches, and with four of these one empty
    real = batch.ids >= 0
    order = np.argsort(batch.arrays["rows"][real])
    alone = {name: x[real][order] for name, x in batch.arrays.items() if name != "rows"}
    small = run_of(full=size, tokens=0, dropout=0.1)
    wanted, expected = gradients(small, alone, num_devices=1)
    found, actual = gradients(cfg, batch.arrays, **mesh)
    assert found == pytest.approx(wanted, rel=1e-5)
    total = wanted["grad_norm"]
    for name, gradient in expected.items():
        np.testing.assert_allclose(actual[name], gradient, rtol=0, atol=1e-5 * total, err_msg=name)


def test_the_learning_rate_follows_the_rows():
    cfg = OptimConfig(lr=0.3, schedule="linear", warmup=2, end_lr_ratio=0.0, decay=4)
    ramp = batch_ramp.build(run_of())
    rate, constant = optim.schedule(cfg, 20, ramp), optim.schedule(cfg, 20)
    np.testing.assert_allclose([float(constant(t)) for t in range(8)], [0.15, 0.3, 0.3, 0.225, 0.15, 0.075, 0, 0])
    for t in range(20):
        full = ramp.rows_before(t) / 16
        # As drawn by the constant schedule between its points.
        wanted = np.interp(full, [0, 1, 2, 6], [0.15, 0.3, 0.3, 0])
        assert float(rate(t)) == pytest.approx(wanted, abs=1e-6), t


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"ramp_batch_size": 4}, "train.ramp_batch_size=4 and train.ramp_tokens=0: a ramp needs both"),
        ({"ramp_batch_size": 16, "ramp_tokens": 999}, "ramp_batch_size=16 is not below train.global_batch_size=16"),
        ({"ramp_batch_size": 4, "ramp_tokens": 2**36}, r"train.ramp_tokens=68719476736 is 2\^31 rows or more"),
        (
            {"ramp_batch_size": 4, "ramp_tokens": 31},
            "train.ramp_tokens=31 is less than a row: set it to data.seq_len=32 or more",
        ),
    ],
)
def test_ramps_that_make_no_sense_are_named(train, message):
    with pytest.raises(ConfigError, match=message):
        config.replace(run_of(tokens=0), train=train)


@pytest.mark.exhaustive
def test_killed_and_resumed_is_the_same_run_bit_for_bit(tmp_path, tmp_path_factory):
    """8 steps of 2, 2, 4, 6 and then 8 rows, killed after the fifth, whose checkpoint is that of the fourth."""
    run = commands.Commands(commands.shared_cache(tmp_path_factory)).run
    ramp = ("--config.train.ramp_batch_size=2", "--config.train.ramp_tokens=320", "--config.log.sample_tokens=0")
    tiny = (*commands.TINY, *ramp, "--config.train.microbatches=2", "--config.model.dropout=0.1")
    tiny = (*tiny, "--config.log.plot=False", "--config.model.attention=reference")
    whole, cut = (tmp_path / name / "run" for name in ("whole", "cut"))
    run("tests.witnessed_train", whole.with_name("record"), "--", *tiny, f"--workdir={whole}")
    run("tests.witnessed_train", cut.with_name("record"), "SIGKILL@5", "--", *tiny, f"--workdir={cut}", code=-9)
    run("tests.witnessed_train", cut.with_name("record"), "--", *tiny, f"--workdir={cut}")
    assert_same_run(cut, whole)
    lines = [map(json.loads, one.with_name("record").read_text().splitlines()) for one in (whole, cut)]
    given, again = ({line["step"]: line for line in some} for some in lines)
    assert given == again
    sizes = [sum(id_ >= 0 for id_ in given[number]["ids"]) for number in range(8)]
    assert sizes == [2, 2, 4, 6, 8, 8, 8, 8]
    assert commands.read(whole / "result.json")["tokens"] == 32 * sum(sizes)
