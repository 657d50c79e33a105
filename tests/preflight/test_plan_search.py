"""The search finds the best plan that fits: analytic order, compiled verdicts, a Pareto front, a budget."""

from dataclasses import replace as with_fields
from itertools import islice
from math import prod
from typing import Any

import pytest

from bigjax import config
from bigjax.config import BATCH_AXES, Config
from bigjax.errors import UserError
from bigjax.preflight.plan import candidates, compiler, devices, search
from bigjax.preflight.plan.compiler import Outcome
from bigjax.preflight.plan.planner import Planner
from bigjax.preflight.plan.search_table import SearchTable
from bigjax.run.chips import parse_topology
from configs import llama
from experiments import cli, config_source
from tests.commands import ROOT

CFG = config.replace(cli.load_config(llama.get_config("8b")), train={"global_batch_size": 64})
TOPOLOGY = devices.parse("v5p:4x4x4")
PLANNER = Planner(TOPOLOGY, "llama")
PRESETS = sorted(str(path) for path in (ROOT / "configs" / "presets").glob("*.json"))


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
    written, *found = candidates.variants(CFG, TOPOLOGY)
    assert not written.changes and len(found) > 200
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


def test_a_search_is_never_worse_than_a_layout_written_by_hand(asked, monkeypatch):
    """The stand-in compiler agrees with the analytic model, so all plans are judged alike."""
    topology, cfg = devices.parse("v5e:16x16"), cli.load_config(llama.get_config("8b"))
    written = [candidates.candidate(cli.load_config(config_source.load(source)), {}, topology) for source in PRESETS]
    assert len(written) > 1
    planner = Planner(topology, "llama")

    def found(cfg: Config) -> search.Tried:
        judge = lambda one, outcome: planner.judge(one.cfg, None)  # noqa: E731
        how: dict[str, Any] = {"budget_s": 60, "timeout_s": 10, "judge": judge, "show": lambda *_: None}
        best = search.search(cfg, topology, **how).best
        assert best
        return best

    monkeypatch.setattr(search, "PATIENCE", 1)
    best = found(cfg)
    for one in written:
        assert one.needed_bytes_per_chip <= topology.chip.hbm_bytes and best.rank <= one.rank
    # What the user wrote is compiled first, even where the analytic model likes another plan better.
    mine, other = written[0], best.candidate
    monkeypatch.setattr(candidates, "variants", lambda cfg, topology: iter([other, mine]))
    assert other.rank < mine.rank
    del asked[:]
    found(mine.cfg)
    assert asked[0] == mine.cfg


@pytest.mark.parametrize(
    "source", ["configs/mixtral.py", "configs/bert.py:large", "configs/t5.py:3b", "configs/rnn.py:large"]
)
def test_every_family_has_candidates_that_it_can_be(source):
    topology = devices.parse("v5p:2x2x2")
    cfg = cli.load_config(config_source.load(source))
    cfg = config.replace(cfg, train={"global_batch_size": 32})
    found = list(islice(candidates.variants(cfg, topology), 40))
    assert len(found) == 40
    splash = candidates.kernel_serves(cfg, "splash", "tpu")
    assert splash == source.startswith("configs/mixtral")  # dropout, a bias on scores, or no attention at all
    assert all((one.cfg.model.attention == "splash") is splash for one in found if one.changes)
    assert all(one.seconds > 0 and one.needed_bytes_per_chip > 0 for one in found)
    split = {mesh.get("mesh.expert") for mesh in candidates.meshes(cfg, topology)}
    assert split == ({1, 2, 4, 8} if cfg.model.moe.num_experts else {None})


@pytest.mark.parametrize(
    ("topology", "slices", "rows", "seq_len"),
    # 70B parameters do not fit a slice of 64 chips, and between machines their gradients take longer than a bubble.
    [("v5e:8x8", 4, 1024, 4096), ("h100:8x8", 1, 32, 2048)],
)
def test_stages_are_offered_where_they_win(topology, slices, rows, seq_len, monkeypatch):
    monkeypatch.setattr(candidates, "REMATS", ("full",))
    where = parse_topology(topology, slices)
    cfg = config.replace(
        cli.load_config(llama.get_config("70b")), train={"global_batch_size": rows}, data={"seq_len": seq_len}
    )
    found = [
        one for one in candidates.variants(cfg, where) if one.needed_bytes_per_chip <= where.chip.hbm_bytes
    ]  # fmt: skip
    assert min(found, key=lambda one: one.rank).cfg.mesh.stage > 1


def test_a_crash_is_a_row_and_not_the_end(asked, monkeypatch):
    monkeypatch.setattr(search, "PATIENCE", 10**6)
    found = run(cfg=config.replace(CFG, train={"global_batch_size": 32}))
    failed = [one for one in found.tried if one.outcome.failure]
    assert failed and all(one.candidate.cfg.mesh.tensor == 2 and not one.fits for one in failed)
    text = SearchTable().summary(found)
    assert "the compiler crashed (SIGFPE)" in text and f"{found.considered} candidates" in text


@pytest.mark.exhaustive
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
