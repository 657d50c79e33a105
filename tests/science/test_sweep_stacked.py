"""Points stacked into one program: each equals its single run, and leaves an ordinary run folder."""

import dataclasses

import jax
import numpy as np
import pytest

from bigjax import models
from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, replace, strict
from bigjax.run.rows import read_rows
from bigjax.science import sweeps
from bigjax.science.sweeps import grid, seeds, zip_
from bigjax.science.sweeps.folder import SweepFolder
from bigjax.science.sweeps.stacked import Stack, StackError, check, make_mesh
from bigjax.sharding import UNSHARDED
from bigjax.tasks import random_batch
from bigjax.train import optimizers as optim
from bigjax.train import step
from experiments import train
from experiments.sweep import stacked as sweep_stacked
from experiments.sweep.launch import Launch
from tests.commands import read

TINY = Config(
    ModelConfig(num_layers=1, d_model=16, num_heads=2, max_seq_len=16, dropout=0.1, positions="rotary"),
    DataConfig(seq_len=16),
    TrainConfig(steps=8, global_batch_size=4, eval_every_steps=4, eval_batches=1),
    OptimConfig(schedule="cosine"),
)

NUMBERS = {
    "optim.lr": [1e-3, 1e-2],
    "optim.warmup": [0, 3],
    "optim.weight_decay": [0.0, 0.3],
    "model.dropout": [0.1, 0.3],
    "model.init_std": [0.02, 0.05],
    "train.seed": [0, 2],
}


PEAK = {"perf/mfu", "perf/measured_peak_flops"}
"""What only a run alone on its device says."""


def points(base: Config, *factors):
    return sweeps.collect(lambda add: add(*factors), strict.to_config_dict(base))


def quiet(cfg: Config) -> Config:
    return replace(cfg, log={"every_steps": 1, "tensorboard": False, "plot": False}, checkpoint={"every_steps": 3})


@pytest.mark.exhaustive
def test_a_point_equals_its_single_run_over_the_devices():
    """With Muon, which leaves some parameters to AdamW."""
    base = replace(TINY, optim={"name": "muon", "schedule": "wsd"})
    cfgs = [point.cfg for point in points(base, zip_(NUMBERS))]
    stack = Stack(cfgs)
    assert (stack.mesh.shape["data"], stack.room) == (2, 2)
    assert set(stack.varied) == set(NUMBERS)
    batches = [random_batch(replace(cfg, train={"seed": 7 + i})) for i, cfg in enumerate(cfgs)]
    state, losses = stack.init(), []
    for _ in range(3):
        state, values = stack.advance(state, [jax.device_get(batch) for batch in batches])
        losses.append(np.asarray(values["loss"]))
    # The first point is the one whose numbers would be everybody's if they were not arrays: look at the other.
    i, cfg = 1, cfgs[1]
    model = models.build(cfg.model)
    tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
    alone = step.jit_init_state(cfg, model, tx, UNSHARDED)()
    one_step = step.jit_train_step(cfg, model, tx, UNSHARDED)
    for t in range(3):
        alone, values = one_step(alone, batches[i])
        # A few roundings of a sum over 64 tokens; they do not grow yet in three small steps.
        assert losses[t][i] == pytest.approx(float(values["loss"]), rel=32 * 2**-23)
    # Where a gradient is rounding alone, Adam's and Muon's step is a learning rate in a direction of chance.
    bound = 3 * 2 * max(cfg.optim.lr, cfg.optim.muon_lr)
    for mine, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        difference = np.abs(np.asarray(mine)[i] - np.asarray(theirs))
        assert difference.max() <= bound
        assert np.median(difference) <= 1e-3 * bound


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Four points as one program: two learning rates with two seeds each."""
    found = points(quiet(TINY), grid({"optim.lr": [1e-3, 1e-2]}), seeds(2))
    launch = Launch(SweepFolder(tmp_path_factory.mktemp("sweep")), found, lambda line: None)
    sweep_stacked.run(launch, 32, lambda: None)
    return launch


def test_the_folders_are_those_of_single_runs_with_their_own_data(together, tmp_path):
    rows = together.folder.table(together.points)
    assert [row["state"] for row in rows] == ["finished"] * 4
    for point, row in zip(together.points[3:], rows[3:], strict=True):
        alone, among = tmp_path / str(point.number), together.folder.path / row["run"]
        one_device(point.cfg, alone)
        assert {path.name for path in among.iterdir()} == {path.name for path in alone.iterdir()}
        mine, theirs = read(among / "result.json"), read(alone / "result.json")
        assert mine.keys() == theirs.keys()
        for name in ("fingerprint", "steps", "tokens", "params_total", "flops", "eval_tokens", "mesh"):
            assert mine[name] == theirs[name]
        assert mine["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-4)
        here, there = (list(read_rows(path / "metrics.jsonl")) for path in (among, alone))
        assert [row["step"] for row in here] == [row["step"] for row in there]
        for a, b in zip(here, there, strict=True):
            assert a.keys() - PEAK == b.keys() - PEAK
            for name in {"train/loss", "optim/lr", "eval/loss"} & a.keys():
                assert a[name] == pytest.approx(b[name], rel=1e-4)
    first = [next(read_rows(together.folder.path / row["run"] / "metrics.jsonl")) for row in rows]
    losses = [row["train/loss"] for row in first]
    assert losses[0] == pytest.approx(losses[2])  # the same seed: the same start and batch
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


def one_device(cfg: Config, folder) -> None:
    """Train by the launcher as on a machine with one device."""
    devices = jax.devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *arguments: devices(*arguments)[:1])
        assert train.run(cfg, folder) == 0


def test_a_stack_that_was_cut_off_goes_on_and_ends_the_same(together, tmp_path):
    launch = Launch(SweepFolder(tmp_path), together.points, lambda line: None)

    def stop_after_five() -> None:
        rows = [last for path in tmp_path.glob("*/metrics.jsonl") if (last := path.read_text().count("\n"))]
        launch.stopping = max(rows, default=0) >= 5

    sweep_stacked.run(launch, 32, stop_after_five)
    assert {status.state for status in launch.statuses().values()} == {"cut off"}
    again = Launch(SweepFolder(tmp_path), together.points, lambda line: None)
    sweep_stacked.run(again, 32, lambda: None)
    rows, expected = (launch.folder.table(together.points) for launch in (again, together))
    assert rows == expected


def test_a_point_that_diverges_ends_alone(tmp_path):
    base = replace(quiet(TINY), optim={"name": "sgd", "weight_decay": 0.0}, model={"dropout": 0.0})
    found = points(base, grid({"optim.lr": [0.1, 1e30, 0.2]}))
    launch = Launch(SweepFolder(tmp_path), found, lambda line: None)
    sweep_stacked.run(launch, 32, lambda: None)
    rows = launch.folder.table(found)
    assert [row["state"] for row in rows] == ["finished", "diverged", "finished"]
    assert "is not finite" in rows[1]["reason"]
    assert list((tmp_path / rows[1]["run"] / "forensics").iterdir())


@pytest.mark.exhaustive
def test_a_point_that_shares_its_program_with_none_is_trained(tmp_path):
    """As the one that is left over, or where every point has a shape of its own."""
    cfg = quiet(replace(TINY, train={"steps": 2, "eval_every_steps": 2}))
    found = points(cfg, seeds(1, first=3))
    launch = Launch(SweepFolder(tmp_path / "stacked"), found, lambda line: None)
    sweep_stacked.run(launch, 32, lambda: None)
    (row,) = launch.folder.table(found)
    one_device(found[0].cfg, tmp_path / "alone")
    # As in the test of many: float32 sums in another order.
    assert row["loss"] == pytest.approx(read(tmp_path / "alone" / "result.json")["eval_loss"], rel=1e-4)


def test_points_whose_options_allow_no_default_decay_are_one_program():
    # Under muP Adam takes no weight decay, whose default is 0.1.
    mup = {"parametrization": "mup", "mup.base_d_model": TINY.model.d_model}
    base = replace(TINY, model=mup, optim={"name": "adam", "weight_decay": 0.0})
    first, second = (sweeps.without_scalars(point.cfg) for point in points(base, grid({"optim.lr": [1e-3, 1e-2]})))
    assert first == second


def test_points_are_shared_out_evenly_over_the_devices():
    shapes = {count: make_mesh(count) for count in (1, 3, 8, 9, 13, 16, 17)}
    assert {count: (mesh.shape["data"], room) for count, (mesh, room) in shapes.items()} == {
        1: (1, 1),
        3: (3, 3),
        8: (8, 8),
        9: (5, 10),
        13: (7, 14),
        16: (8, 16),
        17: (6, 18),
    }


def test_what_cannot_be_stacked_is_said():
    with pytest.raises(StackError, match=r"mesh\.fsdp=2: a program of many points has each whole on one device"):
        check(replace(TINY, mesh={"fsdp": 2}))
    with pytest.raises(StackError, match=r"init_from='runs/x': a program of many points starts afresh"):
        check(dataclasses.replace(TINY, init_from="runs/x"))
    with pytest.raises(StackError, match=r"guard\.on_spike='rollback' takes one run back"):
        check(replace(TINY, guard={"on_spike": "rollback"}))
    with pytest.raises(StackError, match=r"train\.seed=2147483647 is above"):
        check(replace(TINY, train={"seed": 2**31 - 1}))
    with pytest.raises(StackError, match="differ in more than numbers"):
        Stack([TINY, replace(TINY, model={"d_model": 32})])
