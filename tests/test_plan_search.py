"""The search finds the best plan that fits: analytic order, compiled verdicts, a Pareto front, a budget."""

from dataclasses import replace as with_fields
from math import prod

import pytest

from bigjax import config
from bigjax.config import BATCH_AXES
from bigjax.errors import UserError
from bigjax.preflight import candidates, compiler, devices, page, search
from bigjax.preflight.compiler import Outcome
from bigjax.preflight.planner import Planner, exit_code
from bigjax.preflight.search_table import SearchTable
from configs import llama
from experiments import cli

CFG = config.replace(cli.load_config(llama.get_config("8b")), train={"global_batch_size": 64})
TOPOLOGY = devices.parse("v5p:4x4x4")
PLANNER = Planner(TOPOLOGY, "llama")


class Instant:
    """A compilation whose outcome is there at once."""

    def __init__(self, outcome: Outcome):
        self.outcome = outcome

    def check(self, timeout_s: float):
        return self.outcome

    def kill(self) -> None:
        pass


@pytest.fixture
def asked(monkeypatch):
    """Answer for the compiler: as the analytic model, but it crashes on `tensor` 2; return what it was asked."""
    configs = []

    def start(cfg, topology, *, quick):
        assert quick
        configs.append(cfg)
        crash = cfg.mesh.tensor == 2
        return Instant(Outcome(failure="the compiler crashed (SIGFPE)") if crash else Outcome())

    monkeypatch.setattr(compiler, "start", start)
    monkeypatch.setattr(compiler, "POLL_S", 0.0)
    return configs


def run(budget_s: float = 60.0, **how) -> search.Found:
    judge = lambda one, outcome: PLANNER.judge(one.cfg, None)  # noqa: E731
    show = lambda tried, running, left: None  # noqa: E731
    return search.search(how.pop("cfg", CFG), TOPOLOGY, budget_s=budget_s, timeout_s=10, judge=judge, show=show, **how)


def test_every_candidate_is_a_whole_mesh_that_the_batch_fits():
    found = list(candidates.variants(CFG, TOPOLOGY))
    assert len(found) > 200
    for one in found:
        mesh = one.cfg.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 64
        ways = prod(getattr(mesh, axis) for axis in BATCH_AXES)
        assert 64 % (ways * one.cfg.train.microbatches) == 0
        assert {key.partition(".")[0] for key in one.changes} == {"mesh", "model", "train"}
    assert {one.cfg.model.remat for one in found} == set(candidates.REMATS)


def test_the_best_is_at_least_as_fast_as_any_candidate_that_fits(asked):
    found = run()
    assert found.best is not None and found.best.fits
    fitting = [
        one for one in candidates.variants(CFG, TOPOLOGY)
        if one.needed_bytes_per_chip <= TOPOLOGY.chip.hbm_bytes and one.cfg.mesh.tensor != 2
    ]  # fmt: skip
    assert found.best.candidate.rank <= min(one.rank for one in fitting)
    assert len(asked) == len(found.tried) and found.considered > len(asked)


def test_a_crash_is_a_row_and_not_the_end(asked, monkeypatch):
    monkeypatch.setattr(search, "PATIENCE", 10**6)
    found = run(cfg=config.replace(CFG, train={"global_batch_size": 32}))
    failed = [one for one in found.tried if one.outcome.failure]
    assert failed and all(one.candidate.cfg.mesh.tensor == 2 and not one.fits for one in failed)
    text = SearchTable().summary(found)
    assert "the compiler crashed (SIGFPE)" in text and f"{found.considered} candidates" in text


def test_the_pareto_front_has_no_plan_that_another_beats(asked, monkeypatch):
    monkeypatch.setattr(search, "PATIENCE", 10**6)
    found = run()
    front = found.pareto
    assert len(front) > 1 and front[0].rank == min(one.rank for one in found.tried if one.fits)
    for one in found.tried:
        if one.fits and one not in front:
            memory = one.report["hbm_bytes_per_chip_needed"]
            assert any(
                other.rank <= one.rank and other.report["hbm_bytes_per_chip_needed"] <= memory for other in front
            )
    rows = search.as_rows(found)
    assert sum(row["pareto"] for row in rows) == len(front) and rows[0]["fits"]


def test_a_spent_budget_ends_it(asked):
    found = run(budget_s=-1.0)
    assert found.tried == [] and found.best is None and asked == []


def test_a_model_that_never_fits_is_refused_before_compiling(asked):
    small = with_fields(TOPOLOGY, shape=(2, 2, 1))
    cfg = cli.load_config(llama.get_config("70b"))
    with pytest.raises(UserError, match=r"no plan fits v5p:2x2x1 by the analytic model .*: the least is [\d.]+ GiB"):
        search.search(
            cfg, small, budget_s=60, timeout_s=10, judge=lambda *_: {}, show=lambda *_: None
        )  # fmt: skip
    assert asked == []


def test_changes_become_flags():
    changes = {"mesh.fsdp": 8, "mesh.shard_sequence": True, "model.qk_norm": False, "model.remat": "save:qkv"}
    assert candidates.flags(changes) == (
        "--config.mesh.fsdp=8 --config.mesh.shard_sequence --noconfig.model.qk_norm --config.model.remat=save:qkv"
    )
    assert candidates.changed_fields(CFG, {"mesh.fsdp": CFG.mesh.fsdp, "mesh.data": 2}) == {"mesh.data": 2}


def test_a_model_that_only_the_compiler_knows_does_not_fit_where_it_says_so():
    planner = Planner(devices.parse("v5e:4x4"), "sparse")
    cfg = config.replace(config.Config(), model={"moe": config.MoeConfig(num_experts=4)})
    cfg = config.replace(cfg, train={"global_batch_size": 16}, mesh={"data": 16})
    found = planner.judge(cfg, Outcome(out_of_memory_bytes=2**40))
    assert exit_code(found) == 5 and found["verdict"].startswith("DOES NOT FIT: needs 1024.")
    assert found["compiled_flops_per_step"] is None and "executed  not known" in page.render(found)
