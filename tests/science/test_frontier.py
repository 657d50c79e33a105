"""IsoFLOP curves and envelopes find the compute-optimal frontier of a known law, as often as they claim."""

import numpy as np
import pytest
from scipy import optimize, stats

from benchmarks.recorded import EXAMPLES
from bigjax.science.scaling_laws import (
    Conventions,
    Curve,
    FitError,
    compute_optimal,
    fit_envelope,
    fit_isoflop,
    fit_parametric,
    isoflop_bias,
    make_points,
    read_csv,
)
from tests.scaling_points import HOFFMANN, best_size, isoflop_runs, loss_of

EXPONENT = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])


def test_isoflop_finds_the_exponent_but_for_the_curvature_that_is_derived():
    """On a centred grid z the loss is E + K(C) (e^(-alpha z) / alpha + e^(beta z) / beta): one shape for all budgets.

    So the exponent is exact, and every size is off by the same factor, which a parabola through that shape gives.
    """
    for width in (2.0, 10.0):
        points = make_points(*isoflop_runs(HOFFMANN, sizes=9, width=width))
        fit = fit_isoflop(points, bootstrap=0)
        z = np.linspace(-np.log(width), np.log(width), 9)
        shape = np.exp(-HOFFMANN["alpha"] * z) / HOFFMANN["alpha"] + np.exp(HOFFMANN["beta"] * z) / HOFFMANN["beta"]
        curvature, slope, _ = np.polyfit(z, shape, 2)
        factor = np.exp(-slope / (2 * curvature))
        assert fit.parameters["N_exponent"] == pytest.approx(EXPONENT, abs=1e-9)
        assert fit.parameters["D_exponent"] == pytest.approx(1 - EXPONENT, abs=1e-9)
        assert fit.params / best_size(HOFFMANN, fit.flops) == pytest.approx(np.full(5, factor), rel=1e-9)
        law = fit_parametric(points.params, points.tokens, points.loss, bootstrap=0)
        bias = isoflop_bias(points, law, fit)
        assert bias["N_exponent"] == pytest.approx(0, abs=1e-4)
        assert bias["size_at_most_flops"] == pytest.approx(factor, rel=2e-3)
    assert factor > 1.02  # the widest grid: the effect is there


def test_isoflop_of_the_same_sizes_at_all_budgets_has_the_bias_that_is_reported():
    sizes = np.tile(np.geomspace(3e7, 3e9, 13), 4)
    flops = np.repeat(np.geomspace(3e18, 3e20, 4), 13)
    points = make_points(sizes, flops / 6 / sizes, loss_of(HOFFMANN, sizes, flops / 6 / sizes))
    fit = fit_isoflop(points, bootstrap=0)
    law = fit_parametric(points.params, points.tokens, points.loss, bootstrap=0)
    error = fit.parameters["N_exponent"] - EXPONENT
    assert 0.01 < abs(error) < 0.1
    assert isoflop_bias(points, law, fit)["N_exponent"] == pytest.approx(error, abs=0.02 * abs(error) + 2e-4)


def test_isoflop_minima_are_those_of_numpy_and_scipy():
    points = make_points(*isoflop_runs(HOFFMANN, noise=0.002, seed=1))
    fit = fit_isoflop(points, bootstrap=0)
    minima = []
    for flops in np.geomspace(1e18, 1e21, 5):
        rows = np.isclose(points.flops, flops)
        c2, c1, _ = np.polyfit(np.log(points.params[rows]), points.loss[rows], 2)
        minima.append(-c1 / (2 * c2))
    line = stats.linregress(np.log(np.geomspace(1e18, 1e21, 5)), minima)
    assert np.log(fit.params) == pytest.approx(minima, rel=1e-9)
    assert fit.parameters["N_exponent"] == pytest.approx(line.slope, rel=1e-6)
    assert fit.parameters["N_coefficient"] == pytest.approx(np.exp(line.intercept), rel=1e-6)
    (best,) = compute_optimal(fit, 1e23)
    assert pytest.approx(np.exp(line.intercept + line.slope * np.log(1e23)), rel=1e-6) == best.N


# Nine sizes at three budgets leave 18 degrees of freedom, and the ends of each parabola two thirds of their noise;
# at 0.6 % of noise some curves have no minimum in some replicates, at 2 % in most.
@pytest.mark.parametrize(
    ("noise", "sizes", "budgets", "width", "open_ends"),
    [
        (0.002, 7, 5, 3, (0, 0.05)),
        (0.01, 9, 3, 5, (0, 0.3)),
        (0.006, 7, 5, 3, (0.1, 0.9)),
        (0.02, 7, 5, 3, (0.5, 1)),
        # Six times the noise at one end than at the other, either way: drawn from all, it would open most of these.
        ((0.006, 0.004, 0.003, 0.002, 0.001), 9, 5, 5, (0, 0.1)),
        ((0.0005, 0.0005, 0.001, 0.002, 0.003), 6, 5, 3, (0, 0.1)),
    ],
)
def test_isoflop_intervals_hold_the_truth_at_the_nominal_rate(noise, sizes, budgets, width, open_ends):
    """100 simulations; the bound on misses is the binomial's at 1 in 1,000. An interval may be open, but is there."""
    simulations, misses, opened = 100, 0, 0
    noise = np.repeat(np.broadcast_to(noise, budgets), sizes)
    for seed in range(simulations):
        runs = isoflop_runs(HOFFMANN, width=width, noise=noise, sizes=sizes, budgets=budgets, seed=seed)
        fit = fit_isoflop(make_points(*runs), bootstrap=200, seed=seed)
        low, high = fit.ci95["N_exponent"]
        misses += not low <= EXPONENT <= high
        opened += bool(np.isinf([low, high]).any())
        assert np.isfinite([low, high]).all() or any("whose curve has no minimum" in text for text in fit.warnings)
    assert misses <= stats.binom.ppf(0.999, simulations, 0.05)
    assert open_ends[0] <= opened / simulations <= open_ends[1]


@pytest.mark.parametrize("noise", [(0.001,) * 5, (0.0015, 0.001, 0.0005, 0.0005, 0.00025), (1e-4,) * 4 + (0.002,)])
def test_isoflop_intervals_are_those_of_error_propagation_where_noise_is_small(noise):
    """Var(-b / 2c) by the gradient of b and c and their covariance s² (X'X)^-1 of a budget; t as of Satterthwaite."""
    points = make_points(*isoflop_runs(HOFFMANN, width=3, noise=np.repeat(noise, 7), seed=4))
    fit = fit_isoflop(points, bootstrap=4000)
    log_size, loss = np.log(points.params).reshape(5, 7), points.loss.reshape(5, 7)
    variances = []
    for x, y in zip(log_size, loss, strict=True):
        design = np.vander(x - x.mean(), 3, increasing=True)
        theta, left, *_ = np.linalg.lstsq(design, y)
        gradient = np.array([0, -1 / (2 * theta[2]), theta[1] / (2 * theta[2] ** 2)])
        variances.append(gradient @ np.linalg.inv(design.T @ design) @ gradient * float(left[0]) / (7 - 3))
    deviation = np.log(fit.flops) - np.log(fit.flops).mean()
    shares = deviation**2 * variances / (deviation @ deviation) ** 2
    freedom = shares.sum() ** 2 / (shares**2 / (7 - 3)).sum()
    half = stats.t.ppf(0.975, freedom) * np.sqrt(shares.sum())
    low, high = fit.ci95["N_exponent"]
    # A 2.5 % quantile of 4,000 normal replicates has a standard error of 2.1 % of its distance from the middle.
    assert np.array([fit.theta[1] - low, high - fit.theta[1]]) / half == pytest.approx([1, 1], abs=4 * 0.021)


def test_a_size_beyond_all_others_opens_an_interval_to_its_side_alone():
    """The curve of the largest budget hardly bends, its minimum is at large sizes: no larger exponent is excluded."""
    params, tokens, loss = isoflop_runs(HOFFMANN, width=3, noise=0.003, seed=2)
    last = 6 * params * tokens > 5e20
    exact = loss_of(HOFFMANN, params, tokens)[last]
    loss[last] -= 0.5 * (exact - exact.mean()) + 0.02 * np.log(params[last] / params[last].mean())
    fit = fit_isoflop(make_points(params, tokens, loss), bootstrap=400)
    (low, high), (at_least, at_most) = fit.ci95["N_exponent"], fit.ci95["D_exponent"]
    assert np.isfinite(low) and high == np.inf
    assert at_least == -np.inf and np.isfinite(at_most)
    (best,) = compute_optimal(fit, 1e22)
    assert best.ci95["N"][0] > 0 and best.ci95["N"][1] == np.inf
    assert best.ci95["D"][0] == 0 and np.isfinite(best.ci95["D"][1])
    assert "most often that of 1e+21 FLOPs" in fit.warnings[0]


def test_budgets_without_a_minimum_are_left_out_with_the_reason():
    params, tokens, loss = isoflop_runs(HOFFMANN, sizes=9, width=10)
    keep = (6 * params * tokens < 5e20) | (params > 1.5 * best_size(HOFFMANN, 1e21))
    fit = fit_isoflop(make_points(params[keep], tokens[keep], loss[keep]), bootstrap=30)
    assert len(fit.flops) == 4
    (left_out,) = fit.excluded
    assert "1e+21" in left_out.point and "outside of the sizes" in left_out.reason
    with pytest.raises(FitError, match="at least 2 compute budgets"):
        fit_isoflop(make_points(params[:7], tokens[:7], loss[:7]))


def test_losses_that_do_not_differ_have_no_frontier():
    """A parabola through equal losses has a minimum that only rounding has put there."""
    params, tokens, loss = isoflop_runs(HOFFMANN)
    with pytest.raises(FitError, match="its losses are all the same"):
        fit_isoflop(make_points(params, tokens, np.full_like(loss, 2.5)))


def test_three_sizes_a_budget_leave_no_interval():
    fit = fit_isoflop(make_points(*isoflop_runs(HOFFMANN, sizes=3)), bootstrap=30)
    assert set(fit.ci95.values()) == {None} and "no intervals" in fit.warnings[0]
    # Three sizes are met exactly; what the other budgets say of the noise holds for theirs, too.
    runs = isoflop_runs(HOFFMANN, width=3, noise=0.002, sizes=7)
    keep = ~np.isin(np.arange(35), [1, 2, 4, 5])
    fit = fit_isoflop(make_points(*(column[keep] for column in runs)), bootstrap=200)
    low, high = fit.ci95["N_exponent"]
    assert low < EXPONENT < high and not fit.warnings


@pytest.fixture(scope="module")
def curves():
    """Loss curves of 24 sizes, from 2 to 400 tokens a parameter."""
    sizes = np.geomspace(1e7, 1e10, 24)
    tokens = [np.geomspace(2 * size, 400 * size, 80) for size in sizes]
    found = [Curve(d, loss_of(HOFFMANN, size, d)) for size, d in zip(sizes, tokens, strict=True)]
    return make_points(sizes, 400 * sizes, [curve.loss[-1] for curve in found], curves=found)


def test_the_envelope_finds_the_frontier(curves):
    fit = fit_envelope(curves, bootstrap=50)
    # 24 sizes are a factor of 1.35 apart: each best size is within half a step of the true one.
    assert np.abs(np.log(fit.params / best_size(HOFFMANN, fit.flops))).max() < 0.5 * np.log(1000) / 23 + 0.02
    assert fit.parameters["N_exponent"] == pytest.approx(EXPONENT, abs=0.02)
    assert fit.parameters["D_exponent"] == pytest.approx(1 - fit.parameters["N_exponent"], abs=1e-9)
    low, high = fit.ci95["N_exponent"]
    assert low < EXPONENT < high
    assert fit.loss == pytest.approx(loss_of(HOFFMANN, fit.params, fit.tokens), rel=1e-3)
    assert "annealed" in fit.warnings[0]


def test_the_envelope_of_final_losses_goes_through_the_runs_of_each_size(curves):
    params = np.repeat(curves.params, 80)
    tokens = np.concatenate([curve.tokens for curve in curves.curves])
    finals = make_points(params, tokens, loss_of(HOFFMANN, params, tokens))
    assert fit_envelope(finals, bootstrap=0).theta == pytest.approx(fit_envelope(curves, bootstrap=0).theta, rel=1e-9)
    # Sizes read off a figure differ in the last digits.
    read_off = params * np.exp(np.random.default_rng(0).normal(0, 1e-7, len(params)))
    found = fit_envelope(make_points(read_off, tokens, finals.loss), bootstrap=0)
    assert found.theta == pytest.approx(fit_envelope(curves, bootstrap=0).theta, rel=1e-5)
    with pytest.raises(FitError, match="3 sizes"):
        fit_envelope(make_points(*isoflop_runs(HOFFMANN)))


def test_points_are_excluded_by_rule_and_counted_as_said():
    loss = [3.0, np.nan, 2.9, 2.8]
    points = make_points(
        [1e7, 2e7, 3e7, 4e7], [1e9] * 4, loss, diverged=[False, False, True, False], weight=[1, 1, 1, 0]
    )
    assert len(points) == 1
    assert [(row.point, row.reason.split()[0]) for row in points.excluded] == [
        ("point 1", "loss"),
        ("point 2", "diverged"),
        ("point 3", "weight"),
    ]
    again = make_points([1e7], [1e9], [3.0], conventions=Conventions(recompute=True))
    assert again.flops == pytest.approx([8e16])
    assert again.conventions.describe()["recomputation"].startswith("counted")
    with pytest.raises(FitError, match=r"point 0 has loss=-1, which must be above 0"):
        make_points([1e7], [1e9], [-1.0])
    kept = make_points([1e7, 1e7], [1e9, 1e9], [3.0, -1.0], diverged=[False, True])
    assert len(kept) == 1 and kept.excluded[0].reason == "diverged"


def test_recorded_flops_are_modelled_by_a_power_law():
    params, tokens, loss = isoflop_runs(HOFFMANN)
    exact = 9.0 * params**0.97 * tokens
    points = make_points(params, tokens, loss, flops=exact, conventions=Conventions(flops="recorded"))
    model = points.flop_model()
    assert (model.coefficient, model.size_exponent) == pytest.approx((9.0, 0.97), rel=1e-9)
    with pytest.raises(FitError, match="recorded"):
        make_points(params, tokens, loss, conventions=Conventions(flops="recorded"))


def test_seeds_average_in_a_parabola():
    """Two seeds at every setting are fitted as SciPy fits all their points."""
    runs = [isoflop_runs(HOFFMANN, noise=0.002, seed=seed) for seed in (0, 1)]
    params, tokens, loss = np.concatenate(runs, axis=1)
    fit = fit_isoflop(make_points(params, tokens, loss), bootstrap=30)
    rows = np.isclose(6 * params * tokens, 1e18)
    (_, slope, curvature), _ = optimize.curve_fit(
        lambda z, a, b, c: a + b * z + c * z**2, np.log(params[rows]) - 18, loss[rows]
    )
    assert np.log(fit.params[0]) == pytest.approx(18 - slope / (2 * curvature), abs=1e-5)


def test_the_synthetic_runs_of_the_documentation_are_what_it_says():
    """Hoffmann et al.'s law on five isoFLOP curves with 0.3 % noise, rounded."""
    points = read_csv(EXAMPLES / "synthetic_runs.csv", params="total", flops="6ND", recompute=False)
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=0)
    assert points.params == pytest.approx(params, rel=1e-5) and points.tokens == pytest.approx(tokens, rel=1e-5)
    assert points.loss == pytest.approx(loss, abs=1e-5)
