"""The scaling study: its sweeps resolve, and its models and budgets are what its formulas say."""

import importlib

import pytest

from bigjax import models, params
from bigjax.science import sweeps
from experiments.scaling_study import family, isoflop, larger


@pytest.mark.parametrize(("name", "count"), [("isoflop", 17), ("larger", 1), ("ablation", 18)])
def test_every_point_resolves(name, count):
    module = importlib.import_module(f"experiments.scaling_study.{name}")
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
