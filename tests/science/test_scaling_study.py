"""The scaling study: its sweeps resolve, its models and budgets are what its formulas say, its best rates are found."""

import importlib
import json
from math import log2

import pytest

from bigjax import models, params
from bigjax.science import sweeps
from experiments.studies.scaling import family, isoflop, larger, transfer
from tests.synthetic_runs import write_run


@pytest.mark.parametrize(("name", "count"), [("isoflop", 17), ("larger", 1), ("ablation", 18)])
def test_every_point_resolves(name, count):
    module = importlib.import_module(f"experiments.studies.scaling.{name}")
    assert len(sweeps.collect(module.sweep, module.get_config())) == count


@pytest.mark.parametrize(("module", "budgets"), [(isoflop, isoflop.DEPTHS), (larger, [larger.BUDGET])])
def test_points_cost_their_budget_at_the_parameters_that_a_fit_counts(module, budgets):
    for point in sweeps.collect(module.sweep, module.get_config()):
        cfg = point.cfg
        total = params.count(models.build(cfg.model).specs)
        # The rest is gains: 2 L + 1 of D numbers, and 2 L of one head's.
        gains = (2 * cfg.model.num_layers + 1) * cfg.model.d_model + 2 * cfg.model.num_layers * family.HEAD_DIM
        assert total == family.num_parameters(cfg.model.num_layers) + gains
        step = 6 * family.num_parameters(cfg.model.num_layers) * cfg.train.global_batch_size * cfg.data.seq_len
        assert min(abs(cfg.train.steps * step - budget) for budget in budgets) <= step / 2


RATES = [2.0**-power for power in range(4, 11)]


def losses(optimum: float) -> dict[float, float]:
    """Return losses that are a parabola in log2 of the rate around `optimum`."""
    return {rate: 2 + 0.05 * (log2(rate) - optimum) ** 2 for rate in RATES}


@pytest.mark.parametrize("optimum", [-6.0, -7.3, -5.6])
def test_the_best_rate_is_that_of_a_parabola(optimum):
    found = transfer.best(64, losses(optimum))
    assert log2(found.lr) == pytest.approx(optimum, abs=1e-9) and found.loss == pytest.approx(2, abs=1e-12)


def written(folder, optima: dict[str, dict[int, float]]) -> str:
    """Write a run for every rate of every width by every parametrization, and one that has not finished."""
    for name, by_width in optima.items():
        for width, optimum in by_width.items():
            base = {"mup": {"base_d_model": 32}} if name == "mup" else {}
            model = {"d_model": width, "num_heads": width // 16, "parametrization": name, **base}
            for rate, loss in losses(optimum).items():
                optim = {"name": "adam", "weight_decay": 0.0, "lr": rate}
                write_run(folder / f"{name}-{width}-{rate:.4g}", loss, model=model, optim=optim)
    write_run(folder / "cut-off", None)
    return f"{folder}/*"


def test_transfer_finds_how_the_best_rate_moves(call, tmp_path):
    """By construction 1/width by the standard parametrization, and none at all under muP."""
    optima = {"standard": {32: -6.5, 64: -7.5, 128: -8.5}, "mup": dict.fromkeys((32, 64, 128), -6.5)}
    out = tmp_path / "out"
    said = call(f"--runs={written(tmp_path / 'runs', optima)}", f"--out={out}")
    found = json.loads((out / "transfer.json").read_text())
    assert found["standard"]["exponent"] == pytest.approx(-1) and found["mup"]["exponent"] == pytest.approx(0, abs=1e-9)
    assert [round(log2(one["lr"]), 6) for one in found["standard"]["best"]] == [-6.5, -7.5, -8.5]
    assert "left out: cut-off, unfinished" in said and (out / "transfer.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("optima", "message"),
    [
        ({"mup": {32: -10.6, 64: -6.0, 128: -6.0}}, "width 32: the lowest loss is at the edge of the rates tried"),
        ({"mup": {32: -6.0, 64: -6.0}}, "at least 3 widths, not 2"),
        ({}, "none of them has finished"),
    ],
)
def test_transfer_says_what_is_missing(call, tmp_path, optima, message):
    said = call(f"--runs={written(tmp_path / 'runs', optima)}", f"--out={tmp_path / 'out'}", status=2)
    assert message in said and "Traceback" not in said


@pytest.fixture
def call(capsys):
    """Return a function that calls the command and returns what it said."""

    def run(*arguments: str, status: int = 0) -> str:
        ended = 0
        try:
            transfer.run(["transfer", *arguments])
        except SystemExit as end:
            ended = end.code
        assert ended == status
        return "".join(capsys.readouterr())

    return run
