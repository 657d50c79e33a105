"""The files of `benchmarks.compiled` hold figures of rows that it compiles, and a rise is named."""

import json
import math

import pytest

from benchmarks import compiled
from bigjax import sharding
from bigjax.preflight.plan import devices, program


@pytest.fixture(scope="module")
def budget():
    return json.loads(compiled.BUDGET.read_text())["rows"]


def test_a_budget_has_finite_figures_and_versions(budget):
    assert list(budget) == list(compiled.ROWS)
    for name, row in budget.items():
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in compiled.FIGURES), name
        assert math.isclose(sum(row["sent_gib_by_kind"].values()), row["sent_gib"], abs_tol=0.05), name
        assert 0 <= row["async_share"] <= 1 and set(row["versions"]) == set(compiled.COMPARED), name
        assert row["peak_gib"] <= row["needed_gib"], name


def test_maxtext_figures_are_of_rows_that_are_compiled():
    facts = json.loads(compiled.MAXTEXT.read_text())
    assert {name.partition(", ")[0] for name in facts["rows"]} <= set(compiled.ROWS)
    assert {"maxtext", *compiled.COMPARED} <= set(facts["versions"]) and facts["settings"] and facts["date"]


@pytest.mark.parametrize("name", compiled.ROWS)
def test_every_row_fits_its_mesh(name):
    row = compiled.ROWS[name]
    topology = devices.parse(row.topology)
    cfg = compiled.config_of(row)
    built = program.build(cfg, sharding.abstract_mesh(sharding.mesh_shape(cfg.mesh, topology.num_devices)))
    assert cfg.train.global_batch_size == topology.num_devices and cfg.data.seq_len == 8192
    assert (cfg.model.remat, cfg.model.dtype) == ("full", "bfloat16") and built.model.specs


def test_a_rise_is_named_and_other_versions_are_not_compared(budget):
    name, row = next(iter(budget.items()))
    assert compiled.rises(name, row, row) == []
    worse = row | {"mcycles": row["mcycles"] * 1.01}
    assert compiled.rises(name, worse, row) == [f"{name}: mcycles rose from {row['mcycles']} to {worse['mcycles']}"]
    assert compiled.rises(name, worse | {"versions": {"jax": "1", "libtpu": "1"}}, row) == []
    assert compiled.rises(name, row, None) == [f"{name}: there is no budget yet; --write makes one"]


def test_a_row_is_shown_as_multiples_of_the_other(budget):
    found = next(iter(budget.values())) | {"peak_gib": 5.0, "sent_gib": 60.0, "async_share": 0.4, "mcycles": 4500.0}
    theirs = {"peak_gib": 4.0, "sent_gib": 50.0, "async_share": 0.1, "mcycles": 5000.0}
    assert "| x | 5 (1.25) | 60 (1.20) | 40% | 4,500 (0.90) |" in compiled.table_row("x", found, theirs)
    assert "| x | 5 | 60 | 40% | 4,500 |" in compiled.table_row("x", found, None)


def test_the_best_of_several_settings_counts_for_each_figure():
    rows = {
        "a": {"peak_gib": 6.0, "sent_gib": 50.0, "mcycles": 5000},
        "a, loss in 8": {"peak_gib": 4.0, "sent_gib": 80.0, "mcycles": 4900},
        "a x tensor": {"peak_gib": 1.0, "sent_gib": 1.0, "mcycles": 1},
    }
    assert compiled.best_of(rows, "a") == {"peak_gib": 4.0, "sent_gib": 50.0, "mcycles": 4900}
    assert compiled.best_of(rows, "b") is None
