"""Bounds by hand, and against every published run in the table."""

import math
from dataclasses import replace

import pytest

from benchmarks.roofline import main as print_rows
from bigjax.preflight.plan.roofline import (
    MIN_RUNS,
    QUANTILES,
    Work,
    efficiency,
    published_limits,
    published_runs,
    roofline,
)
from bigjax.run.chips import parse_topology

RUNS = published_runs()


def test_a_step_bound_by_compute():
    """v5p: 459 TFLOP/s, so 918e12 executed FLOPs take 2 s, and 459e12 of maths are half of the peak."""
    work = Work(model_flops=459e12, compiled_flops=918e12, hbm_bytes=2 * 2765e9, hbm_bytes_min=2765e9, ici_bytes=600e9)
    found = roofline(work, parse_topology("v5p:4x4x4"))
    assert found.seconds == pytest.approx({"compute": 2.0, "hbm": 1.0, "ici": 1.0, "dcn": 0.0})
    assert found.bound == "compute"
    assert found.mfu_limit == pytest.approx(0.5)
    assert found.compiled_hbm_seconds == pytest.approx(2.0)
    assert found.exposed_link_seconds == 0


def test_a_step_bound_by_memory():
    """v5e: 819 GB/s, so 1638 GB take 2 s, in which 197 TFLOP/s would have done 394e12."""
    found = roofline(Work(98.5e12, 98.5e12, 1638e9, 1638e9), parse_topology("v5e:4x4"))
    assert (found.bound, found.seconds["hbm"]) == ("hbm", pytest.approx(2.0))
    assert found.mfu_limit == pytest.approx(0.25)


def test_a_step_bound_by_the_slow_link():
    """h100: 400 Gb/s, so 200 GB take 4 s, in which 989 TFLOP/s would have done 3956e12."""
    work = Work(989e12, 989e12, 0, 0, ici_bytes=450e9, dcn_bytes=200e9, overlapped_share=0.75)
    found = roofline(work, parse_topology("h100:2x8"))
    assert (found.bound, found.seconds["dcn"]) == ("dcn", pytest.approx(4.0))
    assert found.mfu_limit == pytest.approx(0.25)
    assert found.exposed_link_seconds == pytest.approx(0.25 * (1.0 + 4.0))


def test_a_device_is_half_a_tpu7x():
    found = roofline(Work(2307e12 / 2, 2307e12 / 2, 0, 7380e9 / 2, 300e9, 6.25e9), parse_topology("tpu7x:2x2x1"))
    assert found.seconds == pytest.approx({"compute": 1.0, "hbm": 1.0, "ici": 1.0, "dcn": 1.0})


def test_float32_takes_longer_where_the_chip_is_slower_at_it():
    work = Work(1e12, 1e12, 0, 0, dtype="float32")
    assert roofline(work, parse_topology("h100:1x8")).seconds["compute"] == pytest.approx(1 / 494.5)
    assert roofline(work, parse_topology("v5p:2x2x1")).seconds["compute"] == pytest.approx(1 / 459)


@pytest.mark.parametrize("text", ["v5p:4x4x4", "h100:8x8"])
def test_estimates_are_the_limit_times_what_published_runs_reach(text):
    topology = parse_topology(text)
    found, reached = roofline(Work(1e15, 1.25e15, 1e12, 1e11), topology), efficiency(topology.platform)
    for name in QUANTILES:
        assert found.mfu_estimate[name] == pytest.approx(found.mfu_limit * reached[name])
    assert 0 < reached["low"] < reached["mid"] < reached["high"] <= 1
    for fast, slow in (("low", "high"), ("mid", "mid"), ("high", "low")):
        product = found.step_seconds_estimate[fast] * found.mfu_estimate[slow]
        assert product == pytest.approx(found.mfu_limit * found.seconds[found.bound])


def test_no_estimate_is_faster_than_the_cycles_of_the_program():
    topology = parse_topology("v5p:4x4x4")
    work = Work(model_flops=459e12, compiled_flops=459e12, hbm_bytes=0, hbm_bytes_min=0)  # a second at the peak
    free = roofline(work, topology)
    assert free.compiler_seconds is None
    step = free.step_seconds_estimate
    slow = roofline(replace(work, cycles=round(1.75e9 * step["mid"])), topology)  # 1.75 GHz
    assert slow.compiler_seconds == pytest.approx(step["mid"])
    assert slow.step_seconds_estimate == pytest.approx({**step, "low": step["mid"]})
    assert slow.mfu_estimate["high"] == pytest.approx(1 / step["mid"]) == slow.mfu_estimate["mid"]
    assert roofline(replace(work, cycles=10**9), parse_topology("v6e:4x4")).compiler_seconds is None


def test_few_runs_of_a_platform_borrow_those_of_the_other():
    tpus = [run.name for run in RUNS if run.topology_used.platform == "tpu"]
    assert efficiency("tpu", tpus[MIN_RUNS - 1 :]) != efficiency("tpu", tpus[MIN_RUNS:])
    assert efficiency("tpu", tpus) == efficiency("gpu")


def test_the_table_of_runs():
    assert len(RUNS) >= 12
    assert len({run.name for run in RUNS}) == len(RUNS)
    for run in RUNS:
        assert run.tensor * run.stage * run.fsdp * run.data == run.topology_used.num_devices, run.name
        assert run.confirmed in ("opened", "memory")
        assert run.unit in ("mfu", "flops", "hardware_flops")
        assert len(run.source) > 30
        blocks = run.params - run.lookup_params - run.vocab_size * run.d_model
        assert 0.5 < blocks / (12 * run.num_layers * run.d_model**2) < 2.5, f"{run.name}: shape and size disagree"


@pytest.mark.parametrize("row", published_limits(), ids=lambda row: row["name"])
def test_no_published_run_beats_its_limit(row):
    assert 0.2 < row["mfu"] < row["mfu_limit"] < 1.3


@pytest.mark.parametrize(
    ("name", "tokens_per_s_per_chip"),
    [
        ("maxtext-llama3.1-70b-v6e-1x256", 960.248),
        ("maxtext-llama3.1-8b-v6e-1x8", 7138.89),
        ("torchtitan-llama3-8b-a100-64", 2973),
        ("torchtitan-llama3-70b-a100-64", 331),
        ("torchtitan-llama2-13b-a100-64", 2162),
        ("mpt-7b-h100-8", 10643),
        ("mpt-30b-h100-32", 2308),
        ("mpt-70b-a100-64", 410.5),
        ("palm-540b", 238_300 / 6144),
        ("mt-nlg-530b-a100-2240", 65_430 / 2240),
    ],
)
def test_published_throughput_gives_the_published_utilization(name, tokens_per_s_per_chip):
    """The sources also publish tokens/s, so shape, convention and utilization check each other."""
    (run,) = [run for run in RUNS if run.name == name]
    mfu = tokens_per_s_per_chip * run.model_flops_per_token / run.topology_used.chip.peak("bfloat16")
    assert math.isclose(mfu, run.mfu, rel_tol=0.01)


def test_runs_are_mostly_predicted_without_themselves(capsys):
    """The interval means to hold 80 % of runs; that many of a small, uneven table is not owed, most are."""
    inside = []
    for run in RUNS:
        estimate = roofline(run.work, run.topology_used, without=[run.name]).mfu_estimate
        inside.append(estimate["low"] <= run.mfu <= estimate["high"])
    assert sum(inside) / len(inside) > 0.5
    print_rows()
    assert len(capsys.readouterr().out.splitlines()) == len(RUNS) + 1
