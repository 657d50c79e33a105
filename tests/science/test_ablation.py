"""Statistics of ablations against SciPy, R's published examples, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from bigjax.science.report import ablation

RTOL = 1e-12
"""Closed forms in float64, in another order of operations."""

SLEEP = (
    np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]),
    np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]),
)
"""Extra sleep after two drugs (Student 1908), R's data set `sleep`."""


@pytest.fixture
def groups():
    rng = np.random.default_rng(3)
    return [rng.normal(mean, 0.02, n) for mean, n in ((2.5, 5), (2.51, 3), (2.3, 2), (2.9, 4), (2.52, 1))]


def test_welch_on_students_data_is_what_r_prints():
    """`t.test(extra ~ group, data = sleep)`: p-value = 0.07939, interval -3.3654832 0.2054832."""
    difference, p = ablation.welch(*SLEEP)
    assert (difference.low, difference.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    assert p == pytest.approx(0.07939, abs=5e-6)


def test_welch_and_the_t_interval_are_those_of_scipy(groups):
    for a, b in ((groups[0], groups[1]), (groups[2], groups[3])):
        difference, p = ablation.welch(a, b)
        expected = stats.ttest_ind(a, b, equal_var=False)
        interval = expected.confidence_interval(0.95)
        assert p == pytest.approx(expected.pvalue, rel=1e-9)
        assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
        mean, expected = ablation.t_interval(a), stats.ttest_1samp(a, 0).confidence_interval(0.95)
        assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high), rel=RTOL)


def test_the_noise_floor_is_the_residual_of_a_regression_on_the_settings(groups):
    """One-way analysis of variance by least squares: a setting with one run adds neither residual nor freedom."""
    y = np.concatenate(groups)
    design = np.repeat(np.eye(len(groups)), [len(group) for group in groups], axis=0)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    floor = ablation.noise_floor(groups)
    assert floor is not None
    assert (floor.dof, floor.settings) == (len(y) - len(groups), 4)
    assert floor.sd == pytest.approx(math.sqrt(residual @ residual / floor.dof), rel=1e-9)
    assert floor.detectable == pytest.approx(stats.t.ppf(0.975, floor.dof) * floor.sd * math.sqrt(2), rel=RTOL)


def test_a_setting_with_one_run_is_compared_by_students_test_with_the_pooled_spread(groups):
    """With two settings, one of them a single run, that is the test of equal variances in its closed form."""
    several, one = groups[0], groups[4]
    base, row = ablation.ablate([several, one], 0)
    error = np.std(several, ddof=1) * math.sqrt(1 / len(several) + 1)
    expected = 2 * stats.t.sf(abs(one[0] - several.mean()) / error, len(several) - 1)
    assert row.test == "pooled" and row.p == pytest.approx(expected, rel=1e-9)
    assert base.verdict == "baseline" and base.difference is None
    half = stats.t.ppf(0.975, len(several) - 1) * np.std(several, ddof=1)
    assert (row.mean.low, row.mean.high) == pytest.approx((one[0] - half, one[0] + half), rel=RTOL)


def test_two_settings_of_two_seeds_are_compared_by_students_test(groups):
    a, b = groups[0][:2], groups[2]
    _, row = ablation.ablate([b, a], 0)
    assert row.test == "pooled" and row.p == pytest.approx(stats.ttest_ind(a, b, equal_var=True).pvalue, rel=1e-9)
    _, row = ablation.ablate([groups[1], groups[0]], 0)
    assert row.test == "welch" and row.p == pytest.approx(
        stats.ttest_ind(*groups[:2], equal_var=False).pvalue, rel=1e-9
    )


def test_holm_adjusts_as_r_does():
    """`p.adjust(c(0.04, 0.01, 0.05, 0.02, 0.03), "holm")`."""
    assert ablation.holm([0.04, 0.01, 0.05, 0.02, 0.03]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert ablation.holm([0.6, 0.7]) == [1.0, 1.0] and ablation.holm([]) == []


def test_verdicts_say_the_direction_of_what_is_beyond_noise():
    rng = np.random.default_rng(0)
    groups = [rng.normal(mean, 0.01, 3) for mean in (2.5, 2.2, 2.8, 2.5)]
    assert [row.verdict for row in ablation.ablate(groups, 0)] == ["baseline", "better", "worse", "within noise"]
    assert [row.verdict for row in ablation.ablate(groups, 2)] == ["better", "better", "baseline", "better"]


def test_without_two_seeds_nothing_is_judged():
    assert ablation.noise_floor([np.array([1.0]), np.array([2.0])]) is None
    _, row = ablation.ablate([np.array([1.0]), np.array([2.0])], 0)
    assert (row.verdict, row.p, row.p_adjusted, row.mean.low) == ("no noise floor", None, None, None)
    assert row.difference == ablation.Interval(1.0)


def test_seeds_that_change_nothing_leave_no_noise():
    same = np.array([2.0, 2.0])
    rows = ablation.ablate([same, same, same + 0.1, np.array([1.9])], 0)
    assert [row.verdict for row in rows] == ["baseline", "within noise", "worse", "better"]


def test_false_findings_are_as_rare_as_promised():
    """No setting differs: the chance that any of four rows is called better or worse is at most 5 %."""
    rng, trials = np.random.default_rng(1), 500
    wrong = 0
    for _ in range(trials):
        rows = ablation.ablate(list(rng.normal(2.5, 0.01, (5, 3))), 0)
        wrong += any(row.verdict in ("better", "worse") for row in rows)
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_intervals_of_single_runs_cover_the_mean_at_their_level():
    rng, trials = np.random.default_rng(2), 1000
    covered = 0
    for _ in range(trials):
        _, row = ablation.ablate([rng.normal(2.5, 0.01, 4), rng.normal(2.6, 0.01, 1)], 0)
        assert row.mean.low is not None and row.mean.high is not None
        covered += row.mean.low <= 2.6 <= row.mean.high
    assert abs(covered / trials - 0.95) <= 3 * math.sqrt(0.05 * 0.95 / trials)
