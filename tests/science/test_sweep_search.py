"""Adaptive search with a trainer that trains nothing: what is found, shared, ended early, and gone on with."""

import pytest

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig, strict
from bigjax.errors import UserError
from bigjax.science.sweeps import SweepError, choice, log_uniform
from bigjax.science.sweeps.folder import SweepFolder
from experiments import extras
from experiments.sweep.launch import Launch
from experiments.sweep.search import Search
from tests import stand_in
from tests.stand_in_sweep import command

BASE = Config(ModelConfig(d_model=32), DataConfig(seq_len=32), TrainConfig(steps=stand_in.STEPS, eval_every_steps=1))

SPACE = {"optim.lr": log_uniform(1e-4, 1e-1), "optim.name": choice(["adamw", "lion"])}


@pytest.fixture(autouse=True)
def stand_in_surface(monkeypatch):
    """Let the trainer's loss be a smooth function of the learning rate, with its least value at 0.01."""
    monkeypatch.setenv(stand_in.KILLS, "0.2")
    monkeypatch.setenv(stand_in.SURFACE, "bowl")
    monkeypatch.setenv("PYTHONPATH", str(stand_in.ROOT))


def search(folder, space=SPACE, base=BASE, storage=None, **how) -> tuple[Launch, Search]:
    launch = Launch(SweepFolder(folder), [], lambda line: None)
    base = strict.to_config_dict(base)
    return launch, Search(launch, space, base, storage or str(folder / "study.journal"), **how)


def test_tpe_closes_in_on_the_best_and_the_study_goes_on(tmp_path):
    launch, study = search(tmp_path, seed=0)
    study.run(12, 2, lambda: None, command)
    assert len(launch.folder.table(study.points())) == 12
    launch, again = search(tmp_path, seed=1)
    again.run(24, 2, lambda: None, command)
    rows = launch.folder.table(again.points())
    assert {row["state"] for row in rows} == {"finished"}
    assert len(rows) == 24
    best = min(rows, key=lambda row: row["loss"])
    assert abs(best["loss"]) < 0.25  # |log10(lr) + 2|; of 24 random points the best is that near with 98 %
    late = [row["loss"] for row in rows[12:]]
    early = [row["loss"] for row in rows[:12]]
    assert sum(late) / len(late) < sum(early) / len(early)


def test_a_proposal_that_is_finished_is_not_trained_again(tmp_path):
    space = {"optim.name": choice(["adamw", "lion"])}
    launch, study = search(tmp_path, space, sampler="random", seed=0)
    study.run(8, 2, lambda: None, command)
    rows = launch.folder.table(study.points())
    assert sorted(row["values"]["optim.name"] for row in rows) == ["adamw", "lion"]
    for row in rows:
        assert (tmp_path / row["run"] / "finishes").read_text() == "x"


def test_two_launches_share_a_database_and_its_trials(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    first, mine = search(tmp_path, storage=url, seed=0)
    _, theirs = search(tmp_path, storage=url, seed=1)
    mine.run(4, 1, lambda: None, command)
    theirs.run(6, 1, lambda: None, command)
    points = mine.points()
    assert [point.number for point in points] == [point.number for point in theirs.points()] == list(range(1, 7))
    assert {row["state"] for row in first.folder.table(points)} == {"finished"}


def test_asha_ends_bad_trials_early_and_labels_them(tmp_path, monkeypatch):
    monkeypatch.setenv(stand_in.PACE_S, "0.4")
    launch, study = search(tmp_path, {"optim.lr": log_uniform(1e-4, 1e-1)}, sampler="random", asha=True, seed=0)
    study.run(8, 2, lambda: None, command)
    rows = launch.folder.table(study.points())
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert 0 < len(pruned) < 8
    assert all(row["reason"].startswith("not among the best after step ") for row in pruned)
    best = min((row for row in rows if row["state"] == "finished"), key=lambda row: row["loss"])
    rates = {row["number"]: abs(point.cfg.optim.lr) for row, point in zip(rows, study.points(), strict=True)}
    assert best["loss"] == pytest.approx(stand_in.bowl(rates[best["number"]]))


def test_trials_of_a_launch_that_is_gone_are_tried_again(tmp_path):
    launch, study = search(tmp_path, seed=0)
    lost = study._ask(3)
    study.run(3, 1, lambda: None, command)
    points = {point.number: dict(point.values) for point in study.points()}
    rows = launch.folder.table(study.points())
    assert sum(row["state"] == "finished" for row in rows) == 3
    assert dict(lost.params) in points.values()


def test_mistakes_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(SweepError, match=r"the choice of data\.sources has options that a search cannot store"):
        search(tmp_path, {"data.sources": choice([("a",), ("b",)])})
    with pytest.raises(UserError, match=r"optim\.lrr is not a field of the config: did you mean optim\.lr\?"):
        search(tmp_path, {"optim.lrr": log_uniform(1e-4, 1e-1)})
    silent = Config(train=TrainConfig(eval_every_steps=0))
    with pytest.raises(SweepError, match=r"--pruner=asha judges by evaluations: set train\.eval_every_steps"):
        search(tmp_path, base=silent, asha=True)
    with pytest.raises(SweepError, match="--storage=nosuch://db cannot be opened"):
        search(tmp_path, storage="nosuch://db")
    with pytest.raises(UserError, match=r"--search needs nosuchmodule: pip install 'bigjax\[sweep\]'"):
        extras.load("nosuchmodule", "sweep", "--search")
