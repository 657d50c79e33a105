"""bigjax.config.lengths: shares of the run or steps, what does not fit, and the names that these fields had before."""

import json

import pytest

from bigjax.config import Config, OptimConfig, TrainConfig, lengths, replace
from bigjax.config.strict import from_dict, to_config_dict
from bigjax.data.batches import ramp
from bigjax.errors import ConfigError, UserError
from bigjax.run.folder import RunFolder
from bigjax.science.sweeps import SweepError, grid, resolve
from bigjax.train import optimizers as optim
from experiments import cli, config_source

RENAMED = (
    "optim.warmup_steps is now optim.warmup: set optim.warmup to the same number, which still means steps, or to a "
    "share of the run, below 1"
)


def problem(**optim) -> str:
    """Return what is wrong with a schedule in a run of 60 steps."""
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, {"train": {"steps": 60}, "optim": optim})
    return str(caught.value)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (
            {"warmup": 2000},
            "train.steps=60 has no room for optim.warmup=2000, 2000 steps: set optim.warmup to a share of the run, as "
            "optim.warmup=0.1",
        ),
        (
            {"schedule": "wsd", "warmup": 20, "decay": 120},
            "train.steps=60 has no room for optim.warmup=20 and optim.decay=120, 140 steps: set optim.decay to a share "
            "of the run, as optim.decay=0.1",
        ),
        (
            {"warmup": 50, "decay": 0.5},
            "train.steps=60 has no room for optim.warmup=50 and optim.decay=0.5, 80 steps: set optim.warmup to a share "
            "of the run, as optim.warmup=0.1",
        ),
        (
            {"warmup": 0.5, "decay": 0.6},
            "optim.warmup=0.5 and optim.decay=0.6 are more than the whole run: set shares whose sum is at most 1, such "
            "as 0.1 and 0.2",
        ),
        (
            {"warmup": 1.5},
            "optim.warmup=1.5 is neither a share of the run, below 1, nor whole steps: set optim.warmup=2",
        ),
        (
            {"decay": 20.2},
            "optim.decay=20.2 is neither a share of the run, below 1, nor whole steps: set optim.decay=20",
        ),
        (
            {"schedule": "inverse_sqrt"},
            "optim.schedule='inverse_sqrt' falls from where its warm-up ends, but optim.warmup=0: set "
            "optim.warmup=0.01, a share of the run, or take optim.schedule='constant'",
        ),
        ({"warmup": -0.1}, "optim.warmup=-0.1 is out of bounds, expected a float at least 0"),
        ({"warmup": float("nan")}, "optim.warmup=nan is not finite, expected a float at least 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_into_a_run_is_told_with_what_to_set(optim, message):
    assert problem(**optim) == message


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 59, 60, 1000])
@pytest.mark.parametrize("schedule", lengths.DECAYING)
@pytest.mark.parametrize(("warmup", "decay"), [(0.5, 0.5), (1 / 3, 2 / 3), (0.1, 0.9), (0.29, 0.71), (0.999, 0.001)])
def test_shares_fit_into_a_run_of_any_length(steps, schedule, warmup, decay):
    cfg = Config(train=TrainConfig(steps=steps), optim=OptimConfig(schedule=schedule, warmup=warmup, decay=decay))
    found = lengths.lengths(cfg.optim, steps)
    assert sum(found) <= steps and abs(found[0] - warmup * steps) <= 1 and abs(found[1] - decay * steps) <= 1.5


def test_what_is_not_read_is_noted():
    cfg = Config(optim=OptimConfig(schedule="constant", decay=0.2))
    assert list(lengths.notes(cfg)) == ["optim.decay=0.2 is not read by optim.schedule='constant'"]
    assert not list(lengths.notes(replace(cfg, optim={"schedule": "wsd"})))
    long = {"schedule": "constant", "decay": 5000}
    assert lengths.lengths(Config(optim=OptimConfig(**long)).optim, 1000) == (0, 5000)


def test_where_the_batch_grows_lengths_count_full_batches():
    cfg = Config(train=TrainConfig(steps=100, global_batch_size=16, ramp_batch_size=4, ramp_tokens=256 * 640))
    grown = ramp.build(cfg)
    assert grown.full_batches(100) < 99
    with pytest.raises(ConfigError, match=r"a run of \d+ full batches has no room for optim.warmup=99, 99 steps: set"):
        optim.schedule(replace(cfg, optim={"warmup": 99}).optim, 100, grown)


def test_the_names_that_these_fields_had_are_told_in_flags(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        cli.main(lambda _: 0, doc="", argv=["x", "--config=configs/quickstart.py", "--config.optim.warmup_steps=3"])
    assert capsys.readouterr().err == f"error: --config.{RENAMED}\n"


@pytest.mark.parametrize("code", ["OptimConfig(warmup_steps=3)", "replace(Config(), optim={'warmup_steps': 3})"])
def test_the_names_that_these_fields_had_are_told_in_config_files(code, tmp_path):
    path = tmp_path / "a.py"
    path.write_text(f"from bigjax.config import Config, OptimConfig, replace\ndef get_config():\n    {code}")
    with pytest.raises(UserError) as caught:
        config_source.load(str(path))
    assert str(caught.value) == f"{path}:3: {RENAMED}"


def test_the_names_that_these_fields_had_are_told_of_presets_sweeps_and_run_folders(tmp_path):
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"config": "configs/quickstart.py", "changes": {"optim.warmup_steps": 3}}))
    with pytest.raises(UserError) as caught:
        config_source.load(str(preset))
    assert str(caught.value) == f"{preset}: {RENAMED}"
    with pytest.raises(SweepError) as caught:
        resolve(grid({"optim.warmup_steps": [3]}), to_config_dict(Config()))
    assert str(caught.value).endswith(RENAMED)
    run = RunFolder(tmp_path / "run")
    run.write_config(Config())
    run.config.write_text(run.config.read_text().replace('"warmup":', '"warmup_steps":'))
    with pytest.raises(UserError) as caught:
        run.load_config()
    assert str(caught.value) == f"{run.config} does not fit this version of the schema:\n{RENAMED}"
