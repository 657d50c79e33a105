"""Runs made longer in their folders, and runs that branch off others, are the straight runs bit for bit; or it is said
why not, and what to set."""

import contextlib
import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bigjax import sharding
from bigjax.checkpoint.digests import DIGESTS
from bigjax.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    GuardConfig,
    LogConfig,
    LrMultipliers,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    replace,
)
from bigjax.config.strict import to_config_dict
from bigjax.errors import UserError
from bigjax.run import runtime
from bigjax.run.folder import RunFolder
from bigjax.science.sweeps import SweepError, branches, resolve, stacked
from bigjax.science.sweeps.folder import SweepFolder
from bigjax.science.sweeps.stacked import StackError
from bigjax.train import continuation, optimizers, rollback
from experiments import train
from experiments.sweep import inline
from experiments.sweep.__main__ import check_branches
from experiments.sweep.launch import Launch
from tests.commands import read, rows
from tests.finished_runs import last_checkpoint
from tests.saved_state import saved_state

Run = Callable[..., Path]
WSD = {"schedule": "wsd", "decay": 10}
OF_THE_CLOCK = ("fingerprint", "tokens_per_s", "wall_s")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Some 60 short documents, about 30 rows of 32 bytes: 30 steps of 8 rows are several epochs."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    texts = ["".join(rng.choices("etaoin shrdlu", k=rng.randint(5, 40))) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in texts))
    return f"jsonl:{path}"


def config(text: str, start: Any = None, **sections: dict[str, Any]) -> Config:
    """Return a run of 30 steps at a constant rate after a warm-up of 3, or that branches off `start`, RUN@STEP.

    It has averages, microbatches, dropout, a guard that remembers, and factors on the rate, into which a compiler would
    fold one that it knows.
    """
    base = Config(
        model=ModelConfig(num_layers=1, d_model=16, num_heads=2, max_seq_len=32, vocab_size=256, dropout=0.1),
        data=DataConfig(sources=(text,), seq_len=32, holdout=0.2),
        train=TrainConfig(steps=30, global_batch_size=8, microbatches=2),
        optim=OptimConfig(
            schedule="constant", lr=0.01, warmup=3, ema_decay=0.9, lr_multipliers=LrMultipliers(embedding=0.7)
        ),
        guard=GuardConfig(on_spike="skip", window=5),
        checkpoint=CheckpointConfig(every_steps=10, keep_last=20, asynchronous=False),
        log=LogConfig(every_steps=1, tensorboard=False, plot=False),
        init_state=start,
    )
    return replace(base, **sections)


@contextlib.contextmanager
def on_devices(count: int) -> Iterator[None]:
    """Have runs make their meshes of the first devices only."""
    meshes = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda mesh, _=None: meshes(mesh, jax.devices()[:count]))
        yield


@pytest.fixture(scope="module")
def launch(tmp_path_factory) -> Run:
    """Train a config on so many devices, in a folder of its own unless one is given."""

    def run(cfg: Config, folder: Path | None = None, devices: int = 1) -> Path:
        folder = folder or tmp_path_factory.mktemp("run") / "run"
        with on_devices(devices):
            assert train.run(cfg, folder) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def steady(launch, text) -> Path:
    """A finished run of 20 steps at a constant rate."""
    return launch(config(text, train={"steps": 20}))


@pytest.fixture
def copied(steady, tmp_path) -> Path:
    return shutil.copytree(steady, tmp_path / "copied")


@pytest.fixture(scope="module")
def decayed(launch, text) -> Path:
    """The straight run: steady for 20 steps, then a decay of 10."""
    return launch(config(text, optim=WSD))


def trained(folder: Path, cfg: Config, *steps: int) -> RunFolder:
    """Make what a run of `cfg` leaves that check_longer and check_branch look at: complete checkpoints, a result."""
    run = RunFolder(folder)
    run.write_config(cfg)
    for step in steps:
        (run.checkpoints / str(step)).mkdir(parents=True)
        (run.checkpoints / str(step) / DIGESTS).write_text("{}")
    return run


def assert_same(run: Path, straight: Path, after: int = 0) -> None:
    """Compare the state at the end, where the data stands, the metrics of later steps and the result, bit for bit.

    But for the scores that a run had when it ended the first time.
    """
    assert saved_state(run) == saved_state(straight)
    here, there = (
        [row for row in rows(path) if row["step"] > after and "train/loss" in row] for path in (run, straight)
    )
    assert here == there and here[-1]["step"] == 30
    results = [read(path / "result.json") for path in (run, straight)]
    here, there = ({name: x for name, x in found.items() if name not in OF_THE_CLOCK} for found in results)
    assert here == there and here["steps"] == 30


def test_a_constant_run_branched_into_a_decay_is_the_straight_run(text, steady, decayed, tmp_path, monkeypatch, capsys):
    """The branch is a point of a sweep."""
    monkeypatch.setattr(runtime, "configure_jax", lambda: None)
    (point,) = resolve(branches(str(steady), [30], decay=1 / 3), to_config_dict(config(text)))
    assert point.cfg == config(text, f"{steady}@20", optim=WSD)
    sweep = Launch(SweepFolder(tmp_path / "sweep"), [point])
    with on_devices(1):
        inline.run(sweep)
    assert "finished" in capsys.readouterr().out
    branch = sweep.folder.runs()[point.fingerprint].path
    state = last_checkpoint(decayed).state
    assert state.ema is not None and state.watch is not None
    assert_same(branch, decayed, after=20)
    assert next(row["step"] for row in rows(branch)) == 21


def test_a_finished_constant_run_goes_on_into_a_decay(launch, text, copied, decayed):
    assert read(copied / "result.json")["steps"] == 20
    launch(config(text, optim=WSD), copied)
    assert_same(copied, decayed)
    changed = read(copied / "environment.json")["sessions"][-1]["changed"]
    assert changed == {"train.steps": [20, 30], "optim.schedule": ["constant", "wsd"], "optim.decay": [0.0, 10.0]}


@pytest.mark.exhaustive
def test_a_branch_may_lie_on_another_mesh(launch, text, steady, decayed):
    branch = launch(config(text, f"{steady}@20", optim=WSD, mesh={"data": 1, "fsdp": 2}), devices=2)
    here, there = ([row for row in rows(run) if row["step"] > 20] for run in (branch, decayed))
    assert here[0]["optim/lr"] == there[0]["optim/lr"]
    # As for a resume: sums of float32 in another order, carried through ten updates.
    for row, expected in zip(here, there, strict=True):
        assert row == pytest.approx(expected, rel=2e-4), row["step"]


PLAIN = {
    "model": {"dropout": 0.0},
    "train": {"microbatches": 1},
    "optim": {"ema_decay": None, "lr_multipliers": LrMultipliers()},
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adafactor", "lion", "muon"])
def test_a_branch_of_any_optimizer_is_the_straight_run(launch, text, name):
    optim = {"name": name, "weight_decay": 0.0 if name == "adam" else 0.1}

    def plain(start: str | None = None, **schedule: Any) -> Config:
        return config(text, start, **PLAIN | {"optim": PLAIN["optim"] | optim | schedule})

    branch = launch(plain(f"{launch(plain())}@20", **WSD))
    assert_same(branch, launch(plain(**WSD)), after=20)


@pytest.mark.exhaustive
@pytest.mark.parametrize("optim", [{}, {"schedule": "inverse_sqrt"}, WSD], ids=["constant", "inverse_sqrt", "wsd"])
def test_a_run_whose_rates_do_not_depend_on_its_length_goes_on(launch, text, optim):
    straight = launch(config(text, optim=optim))
    folder = launch(config(text, optim=optim, train={"steps": 20}))
    if optim:  # a decay began after step 10
        (folder / "checkpoints" / "20" / DIGESTS).unlink()
    assert_same(launch(config(text, optim=optim), folder), straight)


@pytest.mark.exhaustive
def test_a_branch_branches_and_goes_on_after_it_was_cut_short(launch, text, steady, decayed, capsys):
    first = launch(config(text, f"{steady}@10", train={"steps": 20}, checkpoint={"every_steps": 5}))
    second = config(text, f"{first}@20", optim=WSD, checkpoint={"every_steps": 5})
    folder = launch(second)
    assert_same(folder, decayed, after=20)
    for path in ((folder / "result.json"), (folder / "checkpoints" / "30" / DIGESTS)):
        path.unlink()
    launch(second, folder)  # only the checkpoint of step 25 is whole
    assert "resuming after step 25" in capsys.readouterr().err
    assert_same(folder, decayed, after=20)


@pytest.mark.exhaustive
def test_what_a_run_leaves_out_its_branch_leaves_out(launch, text, tmp_path):
    def leaving_out(cfg: Config, name: str) -> Path:
        folder = RunFolder(tmp_path / name)
        folder.write_config(cfg)
        rollback.leave_out(folder, 7, 8, "nonfinite")
        return launch(cfg, folder.path)

    steady, straight = leaving_out(config(text), "steady"), leaving_out(config(text, optim=WSD), "straight")
    branch = launch(config(text, f"{steady}@20", optim=WSD))
    assert_same(branch, straight, after=20)
    assert read(branch / "result.json")["left_out_batches"] == [7]


@pytest.mark.exhaustive
def test_a_branch_of_other_text_is_refused(launch, text, steady, tmp_path):
    other = tmp_path / "b.jsonl"
    other.write_text(Path(text.partition(":")[2]).read_text().replace("a", "o"))
    with pytest.raises(UserError, match="the data is not that of the checkpoint at step 20: the tokens of 'jsonl:"):
        launch(config(f"jsonl:{other}", f"{steady}@20"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_branches_of_a_run_are_points_by_their_total_length(text, steady, tmp_path):
    points = resolve(branches(str(steady), (12, 25, 1000)), to_config_dict(config(text)))
    assert [(point.name, point.cfg.init_state, point.cfg.optim.decay) for point in points] == [
        ("steps=12", f"{steady}@10", 2),
        ("steps=25", f"{steady}@20", 5),
        ("steps=1000", f"{steady}@800", 200),
    ]
    check_branches(SweepFolder(tmp_path), points[:2])
    with pytest.raises(SweepError, match=r"point 3 of 3 \(steps=1000\): .* no checkpoint of step 800, only of 10, 20:"):
        check_branches(SweepFolder(tmp_path), points)
    RunFolder(tmp_path / "begun").write_config(points[2].cfg)
    check_branches(SweepFolder(tmp_path), points)  # what has begun has its own checkpoints


@pytest.mark.parametrize(
    ("steps", "decay", "message"),
    [
        ([10], 1, "decay=1) needs a share of each length"),
        ([], 0.2, "branches has no value for train.steps"),
        (10, 0.2, "branches needs a list of values for train.steps"),
        ([1], 0.2, "whole numbers of steps above 1, not 1"),
        ([10.5], 0.2, "whole numbers of steps above 1, not 10.5"),
        ([2], 0.9, "leaves none of 2 steps before the decay"),
    ],
)
def test_branches_that_make_no_sense_are_named(steps, decay, message):
    with pytest.raises(SweepError, match=re.escape(message)):
        branches("runs/a", steps, decay)


def test_a_program_of_many_points_branches_off_none(text):
    with pytest.raises(StackError, match="init_state='runs/a@20': a program of many points starts afresh"):
        stacked.check(config(text, "runs/a@20"))


def test_the_same_text_may_lie_elsewhere(text, steady, tmp_path):
    copied = shutil.copy(text.partition(":")[2], tmp_path / "c.jsonl")
    continuation.check_branch(config(f"jsonl:{copied}", f"{steady}@20"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"optim": WSD, "train": {"steps": 25}}, {"optim": WSD}),
        (
            {"optim": {"schedule": "linear", "decay": 5}, "train": {"steps": 25}},
            {"optim": {"schedule": "linear", "decay": 5}},
        ),
        ({"optim": {"schedule": "inverse_sqrt"}, "train": {"steps": 15}}, {"optim": {"schedule": "inverse_sqrt"}}),
        ({"optim": {"warmup": 0.1}}, {"optim": {"warmup": 3}, "train": {"steps": 60}}),
        ({"optim": WSD}, {"optim": {"schedule": "constant"}, "train": {"steps": 15}}),
        ({"optim": {"end_lr_ratio": 0.0}}, {"optim": {"schedule": "wsd", "decay": 0.5, "end_lr_ratio": 0.2}}),
    ],
    ids=str,
)
def test_a_run_goes_on_where_its_rates_so_far_are_the_same(text, tmp_path, before, after):
    folder = trained(tmp_path / "run", config(text, **before), 5, 15)
    continuation.check_longer(folder, config(text, **after))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"optim": WSD, "train": {"steps": 25}},
            {"optim": WSD},
            "has trained 20 steps and cannot go on as this config says: the learning rate of step 16 was 0.0091 there "
            "and would be 0.01 here; set init_state={}@15 and another --workdir, to branch off before the rates differ",
        ),
        (
            {"optim": {"schedule": "cosine"}},
            {"optim": {"schedule": "cosine"}, "train": {"steps": 60}},
            # 0.1 + 0.45 (1 + cos(pi x)) of the peak, x = 1/26 and 1/56
            "the learning rate of step 5 was 0.00996719 there and would be 0.00999292 here; choose another --workdir "
            "for a run from the start",
        ),
        (
            {"optim": {"warmup": 0.1}},
            {"optim": {"warmup": 0.1}, "train": {"steps": 60}},
            "; set optim.warmup=3, as many steps as it had there",
        ),
        (
            {},
            {"train": {"steps": 15}},
            "has trained 20 steps: set train.steps=20 or more, or choose another --workdir",
        ),
    ],
    ids=str,
)
def test_where_a_run_cannot_go_on_it_is_said_why(text, tmp_path, before, after, message):
    folder = trained(tmp_path / "run", config(text, **before), 10, 15, 20)
    with pytest.raises(UserError) as caught:
        continuation.check_longer(folder, config(text, **after))
    said = str(caught.value)
    assert message.format(folder.path) in said and said.startswith(str(folder.path)) and "\n" not in said


def test_before_its_first_checkpoint_a_run_may_have_any_length(text, tmp_path):
    folder = trained(tmp_path / "run", config(text, optim={"schedule": "cosine"}))
    continuation.check_longer(folder, config(text, optim={"schedule": "linear"}, train={"steps": 60}))


def test_another_run_is_another_run_still(text, steady):
    with pytest.raises(
        UserError, match=r"belongs to another run; choose another --workdir\. It differs in\n  optim\.lr:"
    ):
        continuation.check_longer(RunFolder(steady), config(text, optim={"lr": 0.02}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"d_model": 32}}, "model.d_model is 16 there and 32 here"),
        ({"data": {"seq_len": 16}}, "data.seq_len is 32 there and 16 here"),
        ({"train": {"seed": 1}}, "train.seed is 0 there and 1 here"),
        ({"train": {"global_batch_size": 16}}, "train.global_batch_size is 8 there and 16 here"),
        ({"optim": {"name": "lion"}}, "optim.name is 'adamw' there and 'lion' here"),
        ({"optim": {"ema_decay": None}}, "optim.ema_decay is 0.9 there and None here"),
        ({"guard": {"on_spike": "none"}}, "the guard remembers 5 steps there and 0 here (guard.window)"),
        (
            {"model": {"d_model": 32, "d_ff": 100, "tie_embeddings": False}, "train": {"seed": 1}},
            ", and 1 more; set the same here, or init_from, which takes the parameters alone",
        ),
    ],
    ids=str,
)
def test_what_keeps_a_branch_from_going_on_is_named(text, steady, sections, message):
    cfg = dataclasses.replace(config(text), init_state=f"{steady}@20")
    with pytest.raises(UserError) as caught:
        continuation.check_branch(replace(cfg, **sections))
    said = str(caught.value)
    assert message in said and said.startswith(f"init_state='{steady}@20' cannot be gone on from: ")
    assert len(said) < 600 and "\n" not in said


def test_other_rates_cadences_and_layouts_keep_nothing_from_going_on(text, steady):
    cfg = config(text, f"{steady}@20", optim={"lr": 0.1, "weight_decay": 0.0}, train={"microbatches": 4})
    continuation.check_branch(replace(cfg, mesh={"fsdp": 2}, model={"layers": "unroll"}, log={"every_steps": 3}))


def test_a_step_or_run_that_is_not_there_is_named(text, steady, tmp_path):
    with pytest.raises(UserError) as caught:
        continuation.check_branch(config(text, f"{steady}@7"))
    assert str(caught.value) == (
        f"{steady} has no checkpoint of step 7, only of 10, 20: set init_state={steady}@STEP to one "
        "that it has, or train it with checkpoint.keep_every_steps, which keeps more"
    )
    with pytest.raises(UserError, match=r"is not the folder of a run: it has no config\.json"):
        continuation.check_branch(config(text, f"{tmp_path}/none@7"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"init_state": "runs/a"},
            "init_state='runs/a' does not name a run and a step: set it as in init_state=runs/NAME@1000",
        ),
        (
            {"init_state": "runs/a@30"},
            "init_state='runs/a@30' leaves nothing of train.steps=30, which counts that run's steps, too: set "
            "train.steps to more than 30",
        ),
        (
            {"init_state": "runs/a@20", "init_from": "runs/b"},
            "init_from='runs/b' and init_state='runs/a@20' both say where to start: set one of them to None",
        ),
    ],
    ids=str,
)
def test_where_a_branch_starts_is_checked_with_the_config(text, fields, message):
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(config(text), **fields)
    assert str(caught.value) == message


def test_a_folder_may_have_an_at_sign(text, tmp_path):
    assert continuation.origin(config(text, f"{tmp_path}/a@b@20")) == (RunFolder(tmp_path / "a@b"), 20)


def test_the_steady_part_of_a_schedule_is_the_constant_in_every_bit(text):
    steady, wsd = (optimizers.schedule(config(text, optim=optim).optim, 30) for optim in ({}, WSD))
    np.testing.assert_array_equal(*(optimizers.rates(schedule, np.arange(20)) for schedule in (steady, wsd)))
