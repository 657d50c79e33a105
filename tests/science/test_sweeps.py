"""The points of a sweep: helpers, identity, and mistakes that are named before anything runs."""

import math
import re

import numpy as np
import pytest

from bigjax.config import Config, strict
from bigjax.errors import UserError
from bigjax.science import sweeps
from bigjax.science.sweeps import SweepError, ablation, choice, grid, log_uniform, random, seeds, uniform, zip_
from bigjax.science.sweeps.folder import SweepFolder
from experiments import config_source
from tests.commands import ROOT

BASE = strict.to_config_dict(Config())


def points(*factors, **values):
    return sweeps.collect(lambda add: add(*factors, **values), BASE)


def values(*factors, **others):
    return [dict(point.values) for point in points(*factors, **others)]


def test_a_grid_has_every_combination_and_zip_the_pairs():
    assert values(grid({"optim.lr": [1e-3, 1e-2], "train.steps": [5, 6]})) == [
        {"optim.lr": lr, "train.steps": steps} for lr in (1e-3, 1e-2) for steps in (5, 6)
    ]
    assert values(zip_({"optim.lr": [1e-3, 1e-2], "train.steps": [5, 6]})) == [
        {"optim.lr": 1e-3, "train.steps": 5},
        {"optim.lr": 1e-2, "train.steps": 6},
    ]
    with pytest.raises(SweepError, match=r"zip_ needs as many values of every field, not \{'a': 1, 'b': 2\}"):
        zip_({"a": [1], "b": [1, 2]})


def test_factors_are_crossed_and_their_fields_reach_the_config():
    found = points(grid({"optim.lr": [1e-3, 1e-2]}), seeds(3), **{"train.steps": 7})
    assert [(point.cfg.optim.lr, point.cfg.train.seed) for point in found] == [
        (lr, seed) for lr in (1e-3, 1e-2) for seed in range(3)
    ]
    assert {point.cfg.train.steps for point in found} == {7}
    assert [point.name for point in found][:2] == ["lr=0.001,seed=0", "lr=0.001,seed=1"]
    assert [point.number for point in found] == [1, 2, 3, 4, 5, 6]
    assert all(point.fingerprint == strict.fingerprint(point.cfg) for point in found)


def test_random_points_follow_their_distributions():
    space = {
        "optim.lr": log_uniform(1e-4, 1e-1),
        "optim.b1": uniform(0.5, 0.9),
        "optim.name": choice(["adamw", "lion"]),
    }
    drawn = [change.values for change in random(4000, 0, space)]
    logs = np.log10([change["optim.lr"] for change in drawn])
    # A mean of 4000 uniform numbers is within 4 standard errors, range / sqrt(12 * 4000) each.
    assert abs(logs.mean() + 2.5) < 4 * 3 / math.sqrt(12 * 4000)
    assert logs.min() >= -4
    assert logs.max() <= -1
    b1 = np.array([change["optim.b1"] for change in drawn])
    assert abs(b1.mean() - 0.7) < 4 * 0.4 / math.sqrt(12 * 4000)
    share = np.mean([change["optim.name"] == "lion" for change in drawn])
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert abs(np.corrcoef(logs, b1)[0, 1]) < 4 / math.sqrt(4000)


def test_more_random_points_or_fields_leave_those_there_are():
    rates = {"optim.lr": log_uniform(1e-4, 1e-1)}
    few = [change.values["optim.lr"] for change in random(5, 3, rates)]
    more = [change.values["optim.lr"] for change in random(9, 3, {"optim.b1": uniform(0, 0.5)} | rates)]
    assert more[:5] == few
    assert [change.values["optim.lr"] for change in random(5, 4, rates)] != few


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0)])
def test_a_range_that_is_none(low, high):
    with pytest.raises(SweepError, match="is no range"):
        log_uniform(low, high)


def test_an_ablation_changes_one_factor_at_a_time():
    rows = {"no warmup": {"optim.warmup": 0}, "relu": {"model.activation": "relu"}}
    found = points(ablation({"optim.warmup": 10}, rows), seeds(2))
    assert [point.name for point in found] == [
        f"{label},seed={seed}" for label in ("baseline", "no warmup", "relu") for seed in (0, 1)
    ]
    assert [point.label for point in found][::2] == ["baseline", "no warmup", "relu"]
    assert [(point.cfg.optim.warmup, point.cfg.model.activation) for point in found][::2] == [
        (10, "gelu_tanh"),
        (0, "gelu_tanh"),
        (10, "relu"),
    ]


def test_derived_fields_follow_the_fields_of_a_point():
    found = points(grid({"model.d_model": [64, 128]}))
    assert [(point.cfg.model.head_dim, point.cfg.model.d_ff) for point in found] == [(16, 256), (32, 512)]


def test_mistakes_are_named_with_their_points_before_any_starts():
    with pytest.raises(SweepError) as error:
        points(grid({"optim.lr": [1e-3, -1.0], "model.d_model": [64, 65]}))
    said = str(error.value).splitlines()
    assert [re.match(r"point (\d) of 4", line)[1] for line in said if line.startswith("point")] == ["2", "3", "4"]
    assert said[0] == (
        "point 2 of 4 (lr=0.001,d_model=65): model.d_model=65 is not divisible by model.num_heads=4: set "
        "model.d_model=64, or model.head_dim"
    )
    assert "optim.lr=-1.0 is out of bounds, expected a float above 0" in said[1]
    with pytest.raises(SweepError, match=r"\(learning_rate=1\): .* is not a field .*: did you mean optim.lr\?"):
        points(**{"optim.learning_rate": 1})
    with pytest.raises(SweepError, match="optim is a section: set its fields one by one"):
        points(optim={"lr": 1.0})
    with pytest.raises(SweepError, match=r"train.seed is set by two factors of one add\(...\)"):
        points(seeds(2), **{"train.seed": 1})
    with pytest.raises(SweepError, match="the sweep has no points"):
        sweeps.collect(lambda add: None, BASE)
    with pytest.raises(SweepError) as error:
        points(grid({"optim.lr": [-1.0 - i for i in range(37)]}))
    assert str(error.value).splitlines()[10:] == ["... and 27 points more"]


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (lambda: grid({"optim.lr": 1e-3}), "grid needs a list of values for optim.lr, not 0.001"),
        (lambda: grid({"optim.name": "adamw"}), "grid needs a list of values for optim.name, not 'adamw'"),
        (lambda: grid({"optim.lr": []}), "grid has no value for optim.lr"),
        (lambda: grid([1]), "grid takes a dict"),
        (lambda: seeds(0), "seeds(0) is no point"),
        (lambda: seeds(2.5), "seeds(2.5) is no point"),
        (lambda: random(0, 0, {}), "random(0, ...) is no point"),
        (lambda: random(2, -1, {}), "seed=-1"),
        (lambda: random(2, 0, {"optim.lr": [1e-3, 1e-2]}), "for optim.lr, not [0.001, 0.01]"),
        (lambda: log_uniform("1e-5", "1e-6"), "is no range"),
        (lambda: uniform(0, float("inf")), "is no range"),
        (lambda: ablation({}, [{"optim.lr": 1.0}]), "a dict of named rows"),
        (lambda: ablation({}, {"baseline": {"optim.lr": 1.0}}), "called baseline"),
        (lambda: {"optim.lr": 1e-3}, "add takes grid(...) and the like, and fields as **{path: value}"),
        (lambda: 3, "not 3"),
    ],
)
def test_a_factor_that_is_none_is_one_sentence(factor, words):
    with pytest.raises(SweepError) as error:
        points(seeds(1), factor())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers():
    made = grid({"model.d_model": np.array([16, 32]), "optim.lr": np.geomspace(1e-3, 1e-2, 2)})
    assert [type(value) for value in made[0].values.values()] == [int, float]
    twice = zip_({"optim.lr": (10.0**-i for i in (2, 3)), "model.d_model": [np.int64(16), np.int64(32)]})
    assert [point.cfg.model.d_model for point in points(twice)] == [16, 32]


def test_points_that_collide_are_named():
    with pytest.raises(
        SweepError, match=r"points 1 \(lr=0.001\) and 3 \(lr=0.001\) are the same run: no field differs"
    ):
        points(grid({"optim.lr": [1e-3, 1e-2, 1e-3]}))
    with pytest.raises(SweepError, match=r"they differ in mesh\.fsdp only, which is plumbing"):
        points(grid({"mesh.fsdp": [1, 2]}))


def test_what_makes_a_point_new_is_said_field_by_field():
    near, far = (point.cfg for point in points(grid({"optim.lr": [3e-4, 1e-2]})))
    (new,) = points(**{"optim.lr": 6e-4, "mesh.fsdp": 2})
    assert sweeps.explain(new.cfg, [near]) == "optim.lr 0.0003 → 0.0006"
    (other,) = points(**{"optim.lr": 3e-4, "train.seed": 1})
    assert sweeps.explain(other.cfg, [far, near]) == "train.seed 0 → 1"
    assert sweeps.explain(other.cfg, []) == "the first run here"


def test_what_is_damaged_in_a_folder_is_named_or_passed_over(tmp_path):
    """Rows that are none are no progress; a result or an outcome that cannot be read is never taken for another."""
    (point,) = points(seeds(1))
    folder = SweepFolder(tmp_path)
    run = folder.place(point)
    run.metrics.write_text('{"step": 2, "train/loss": 3.5, "time_s": 1.0}\n{"step": 3, "train/loss": [1]}\n7\n')
    assert folder.status(point, folder.runs()).step == 2
    damaged = [(run.outcome, "{}"), (run.outcome, "[1]"), (run.result, '{"eval_loss": "x"}'), (run.result, "7")]
    for path, text in damaged:
        path.write_text(text)
        with pytest.raises(UserError, match=f"{path.name} cannot be read"):
            folder.status(point, folder.runs())


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_sweep_of_configs_resolves(path):
    found = sweeps.collect(config_source.load_sweep(str(path)), config_source.load(str(path)))
    assert len({point.folder for point in found}) == len(found) > 1
    doc = path.read_text().split('"""')[1]
    assert f"python -m experiments.sweep --config=configs/sweeps/{path.name}" in doc
