"""Fits of L(N, D) find the law that made the points, as often as they claim, and agree with SciPy and the papers."""

import csv
import math

import numpy as np
import pytest
from scipy import optimize, stats

from bigjax.science.laws import parametric as fits_parametric
from bigjax.science.laws import robust as fits_robust
from bigjax.science.scaling_laws import (
    FitError,
    FlopModel,
    compute_optimal,
    design_next,
    fit_data_constrained,
    fit_parametric,
    fit_points,
    fit_power_law,
    hold_out_largest,
    leave_one_budget_out,
    make_points,
    sensitivity,
)
from tests.commands import ROOT
from tests.scaling_points import BESIROGLU, HOFFMANN, best_size, isoflop_runs, loss_of

PUBLISHED = ROOT / "shared" / "chinchilla_points.csv"
"""The points of Besiroglu et al. 2024 (their svg_extracted_data.csv); no package ships them."""


@pytest.fixture(scope="module")
def noisy():
    """35 runs on five isoFLOP curves of Hoffmann et al.'s law with 0.3 % noise, and their fit."""
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=0)
    return make_points(params, tokens, loss), fit_parametric(params, tokens, loss, bootstrap=100)


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU], ids=["Hoffmann 2022", "Besiroglu 2024"])
def test_exact_points_give_back_the_published_law(law):
    """Hoffmann et al. 2022, appendix D.2; Besiroglu et al. 2024, table 1; the optimum by its closed form."""
    params, tokens, loss = isoflop_runs(law)
    fit = fit_parametric(params, tokens, loss, bootstrap=0)
    assert fit.converged
    for name, value in law.items():
        assert fit.parameters[name] == pytest.approx(value, rel=2e-3), name
    for row in compute_optimal(fit, [1e19, 5.76e23]):
        assert pytest.approx(best_size(law, row.C), rel=2e-3) == row.N
        assert pytest.approx(row.C, rel=1e-9) == 6 * row.N * row.D
        assert row.tokens_per_parameter == pytest.approx(row.D / row.N, rel=1e-9)
        assert row.loss == pytest.approx(loss_of(law, row.N, row.D), rel=1e-4)


def test_the_gradient_is_that_of_the_objective(noisy):
    points, fit = noisy
    model = fits_parametric.log_loss_model(np.log(points.params), np.log(points.tokens))
    weight = np.linspace(0.5, 2, len(points))
    arguments = (model, np.log(points.loss), weight, 1e-3)

    def value(theta):
        return fits_robust.objective(theta, *arguments)[0]

    def gradient(theta):
        return fits_robust.objective(theta, *arguments)[1]

    # Slopes of the Huber loss change by at most 1 a unit of error: a step h changes a derivative by h |log N|² a point.
    step = 1e-9
    bound = step * np.log(points.tokens.max()) ** 2 * weight.sum()
    for shift in (0.0, 0.1, -0.2):  # at the optimum, where the errors have both signs, and where all are large
        assert optimize.check_grad(value, gradient, fit.theta + shift, epsilon=step) < bound
    assert np.linalg.norm(gradient(fit.theta + 0.1)) > 1000 * bound


def test_scipy_finds_no_better_optimum_of_the_same_objective(noisy):
    """The objective written anew, in the paper's own coordinates, and minimised by another method from the truth."""
    points, fit = noisy
    n, d, y = np.log(points.params), np.log(points.tokens), np.log(points.loss)

    def value(theta):
        e, a, b, alpha, beta = theta
        error = np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e) - y
        small = np.abs(error) <= 1e-3
        return np.where(small, error**2 / 2, 1e-3 * (np.abs(error) - 5e-4)).sum()

    assert value(fit.theta) == pytest.approx(fit.objective, rel=1e-9)
    truth = [np.log(HOFFMANN["E"]), np.log(HOFFMANN["A"]), np.log(HOFFMANN["B"]), HOFFMANN["alpha"], HOFFMANN["beta"]]
    options = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-8, "fatol": 1e-14, "adaptive": True}
    other = optimize.minimize(value, truth, method="Nelder-Mead", options=options)
    assert fit.objective <= other.fun * (1 + 1e-6)
    assert value(truth) > fit.objective


def test_replicates_are_the_optima_that_lbfgs_finds(noisy):
    points, fit = noisy
    weights = fits_robust.bootstrap_weights(np.arange(len(points)), 5, seed=3)
    quick = fits_parametric.refit(fit, points.params, points.tokens, points.loss, weights, 1e-3)
    for theta, weight in zip(quick, weights, strict=True):
        slow = fit_parametric(points.params, points.tokens, points.loss, weight=weight, bootstrap=0, start=fit)
        assert theta[3:] == pytest.approx([slow.alpha, slow.beta], abs=1e-4)
        assert np.exp(theta[0]) == pytest.approx(slow.E, rel=1e-3)


def test_intervals_hold_the_truth_at_the_nominal_rate():
    """60 sets of 25 noisy points; 95 % intervals that held must miss no more than a binomial allows, at 1 in 1,000.

    Five parameters and the optimal size at ten times the largest budget are checked, each against the bound for 6.
    """
    simulations, allowed = 60, 1 - 0.001 / 6
    start = fit_parametric(*isoflop_runs(HOFFMANN, budgets=5, sizes=5), bootstrap=0)
    hits = dict.fromkeys([*HOFFMANN, "N"], 0)
    for seed in range(simulations):
        params, tokens, loss = isoflop_runs(HOFFMANN, budgets=5, sizes=5, noise=0.004, seed=seed)
        fit = fit_parametric(params, tokens, loss, bootstrap=60, seed=seed, start=start)
        (best,) = compute_optimal(fit, 1e22)
        truths = HOFFMANN | {"N": best_size(HOFFMANN, 1e22)}
        for name, ends in (fit.ci95 | {"N": best.ci95["N"]}).items():
            assert ends is not None
            hits[name] += ends[0] <= truths[name] <= ends[1]
    misses = {name: simulations - count for name, count in hits.items()}
    assert max(misses.values()) <= stats.binom.ppf(allowed, simulations, 0.05), misses
    # Nor are they so wide that none ever misses.
    assert sum(misses.values()) > 0


@pytest.mark.parametrize("seed", [4, 6, 7])
def test_a_law_that_ends_at_zero_has_an_interval_for_its_end(seed):
    """E = 0 is where these noisy points lead, but they do not say that it is exactly 0, nor more than any loss."""
    law = {"E": 0.0, "A": 500.0, "B": 90.0, "alpha": 0.12, "beta": 0.2}
    params, tokens, loss = isoflop_runs(law, budgets=5, sizes=5, noise=0.002, seed=seed)
    fit = fit_parametric(params, tokens, loss, bootstrap=60, seed=seed)
    assert fit.converged and 0 < fit.E < 1e-6 and "E is 0" in fit.warnings[0]
    low, high = fit.ci95["E"]
    assert low < 1e-6 and 0.1 < high < loss.min()
    assert np.isfinite(fit.theta).all() and np.isfinite(fit.predict_interval(params, tokens)).all()
    line = fit_power_law(
        params, law["A"] / params ** law["alpha"] * loss / loss_of(law, params, tokens), irreducible=True
    )
    low, high = line.ci95["irreducible"]
    assert low < 1e-6 and 0.01 < high < 1e2


def test_seeds_of_one_setting_are_drawn_together(noisy):
    """Every point written four times says no more than once: the same fit and the same intervals."""
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=1)
    once = fit_parametric(params, tokens, loss, bootstrap=50, start=noisy[1])
    four = fit_parametric(*(np.tile(c, 4) for c in (params, tokens, loss)), bootstrap=50, start=noisy[1])
    assert (four.n_points, four.n_clusters) == (4 * once.n_points, once.n_points)
    assert four.alpha == pytest.approx(once.alpha, abs=1e-5)
    assert four.ci95["alpha"] == pytest.approx(once.ci95["alpha"], abs=1e-3)


def test_a_weight_of_two_is_the_point_twice(noisy):
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=2)
    weight = np.where(np.arange(len(loss)) % 3 == 0, 2.0, 1.0)
    weighted = fit_parametric(params, tokens, loss, weight=weight, bootstrap=0, start=noisy[1])
    twice = fit_parametric(
        *(np.repeat(c, weight.astype(int)) for c in (params, tokens, loss)), bootstrap=0, start=noisy[1]
    )
    assert weighted.theta == pytest.approx(twice.theta, rel=1e-4)


def test_the_optimum_of_exact_flops_is_that_of_a_search():
    params, tokens, loss = isoflop_runs(HOFFMANN)
    model = FlopModel(coefficient=20.0, size_exponent=0.93)
    fit = fit_parametric(params, tokens, loss, bootstrap=0, flop_model=model)
    (best,) = compute_optimal(fit, 1e21)

    def along(log_size):
        size = np.exp(log_size)
        return float(fit.predict(np.array([size]), np.array([1e21 / (20 * size**0.93)]))[0])

    searched = optimize.minimize_scalar(along, bracket=(18, 22))
    assert np.log(best.N) == pytest.approx(searched.x, abs=1e-4)
    assert pytest.approx(1e21, rel=1e-9) == 20 * best.N**0.93 * best.D


def test_power_laws_agree_with_scipy():
    x = np.geomspace(1, 1e4, 12)
    y = 3 * x**0.5 * np.exp(np.random.default_rng(0).normal(0, 0.05, 12))
    fit, line = fit_power_law(x, y), stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, 10) * np.array([line.intercept_stderr, line.stderr])
    assert fit.exponent == pytest.approx(line.slope, rel=1e-9)
    assert fit.ci95["exponent"] == pytest.approx([line.slope - half[1], line.slope + half[1]], rel=1e-9)
    assert fit.ci95["coefficient"] == pytest.approx(
        np.exp([line.intercept - half[0], line.intercept + half[0]]), rel=1e-9
    )
    exact = fit_power_law(x, 2 + 5 * x**-0.4, irreducible=True, bootstrap=0)
    assert (exact.irreducible, exact.coefficient, exact.exponent) == pytest.approx((2, 5, -0.4), rel=2e-3)


def test_repeated_data_gives_back_the_published_repetitions():
    """R*_D = 15.4 and R*_N = 5.3 (Muennighoff et al. 2023, section 5), with the effective amounts written as a loop."""
    params, tokens, loss = isoflop_runs(HOFFMANN)
    base = fit_parametric(params, tokens, loss, bootstrap=0)
    rows = [(n, u * r, u) for u in (1e8, 1e9, 1e10) for r in (2, 4, 10, 40) for n in (1e7, 1e8, 1e9, 1e10)]
    losses = []
    for n, d, u in rows:
        best = (base.alpha * base.A / (base.beta * base.B) * u**base.beta) ** (1 / base.alpha)
        unique = min(best, n)
        worth_d = u + u * 15.4 * (1 - math.exp(-(d / u - 1) / 15.4))
        worth_n = unique + unique * 5.3 * (1 - math.exp(-(n / unique - 1) / 5.3))
        losses.append(loss_of(base.parameters, worth_n, worth_d))
    fit = fit_data_constrained(*np.array(rows).T, np.array(losses), base=base, bootstrap=20)
    assert (fit.R_D_star, fit.R_N_star) == pytest.approx((15.4, 5.3), rel=1e-3)
    assert fit.converged and fit.warnings == ()
    assert fit.predict(*np.array(rows).T) == pytest.approx(losses, rel=1e-5)
    with pytest.raises(FitError, match="repeat"):
        fit_data_constrained(params, tokens, tokens, loss, base=base)


def test_the_largest_budget_is_predicted_within_its_interval(noisy):
    points, _ = noisy
    held = hold_out_largest(points, bootstrap=100)
    assert held.flops == pytest.approx(1e21) and held.trained_flops < 2e20
    # Seven 95 % intervals: fewer than 4 hits would be 1 in 10,000.
    assert held.inside.sum() >= 4
    assert np.abs(held.log_error).max() < 0.02
    broken = make_points(points.params, points.tokens, np.where(points.flops > 5e20, 1.2, 1) * points.loss)
    assert not hold_out_largest(broken, bootstrap=50).inside.any()


def test_leaving_out_equals_a_fit_without(noisy):
    points, fit = noisy
    rows = leave_one_budget_out(points, fit)
    assert len(rows) == 5
    other = fit_points(points.take(points.flops > 2e18), bootstrap=0)
    assert rows[0]["alpha"] == pytest.approx(other.alpha, abs=1e-4)
    assert rows[0]["rms_relative_error"] < 0.02


def test_a_wrong_point_is_the_most_influential():
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.001, seed=4)
    loss[0] *= 1.1
    points = make_points(params, tokens, loss)
    found = sensitivity(points, fit_points(points, delta=1e-1, bootstrap=0))
    assert found["dropped_points"][0]["point"] == "point 0"
    assert [row["delta"] for row in found["delta"]] == [1e-4, 1e-3, 1e-2, 1e-1]
    robust, squares = found["delta"][1]["alpha"], found["delta"][3]["alpha"]
    assert abs(robust - HOFFMANN["alpha"]) < abs(squares - HOFFMANN["alpha"])


def test_the_next_runs_shrink_the_interval_as_foretold(noisy):
    """Simulated: the proposed runs are made with the same noise; the new interval is compared with the promise."""
    points, fit = noisy
    design = design_next(fit, 3e21, target_flops=1e23)
    assert sum(run.C for run in design.runs) <= 3e21 * (1 + 1e-9)
    assert all(pytest.approx(run.C) == 6 * run.N * run.D for run in design.runs)
    assert 1 < design.size_factor_after < design.size_factor_before and design.volume_factor < 1
    params, tokens = np.array([(run.N, run.D) for run in design.runs]).T
    loss = loss_of(HOFFMANN, params, tokens) * np.exp(np.random.default_rng(5).normal(0, 0.003, len(params)))
    more = fit_parametric(
        *map(np.append, (points.params, points.tokens, points.loss), (params, tokens, loss)), bootstrap=100
    )
    widths = [np.log(row.ci95["N"][1] / row.ci95["N"][0]) for row in (compute_optimal(f, 1e23)[0] for f in (fit, more))]
    assert widths[1] < widths[0]
    assert np.log(design.size_factor_before) == pytest.approx(widths[0] / 2, rel=0.25)  # 100 replicates: 7 % of a width
    every = design_next(fit, 3e21, target_flops=1e23, criterion="D")
    assert every.volume_factor <= design.volume_factor and every.size_factor_after >= design.size_factor_after


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": np.array([2.0, np.nan] * 5)}, "5 of 10 in loss"),
        ({"tokens": -np.ones(10)}, "10 of 10 in tokens"),
        ({"loss": np.ones(9)}, "one length"),
        ({"params": np.full(10, 1e8)}, "3 sizes"),
        ({"params": np.full(10, 1e8), "tokens": np.full(10, 1e9)}, "too few"),
        ({"delta": 0.0}, "delta"),
    ],
)
def test_points_that_no_law_fits_are_refused(change, words):
    given = {"params": np.geomspace(1e7, 1e9, 10), "tokens": np.geomspace(1e9, 1e10, 10), "loss": np.linspace(3, 2, 10)}
    with pytest.raises(FitError, match=words):
        fit_parametric(**(given | change))


@pytest.mark.skipif(
    not PUBLISHED.is_file(), reason=f"no {PUBLISHED.name} in shared/: published points cannot be fitted"
)
def test_the_published_points_give_the_published_fit():
    """Besiroglu et al. 2024, table 1, from the points they read off a figure of Hoffmann et al. 2022.

    As there, the five runs with the fewest tokens per parameter are left out.
    """
    with PUBLISHED.open(newline="") as file:
        rows = [
            [float(row[name] or "nan") for name in ("Model Size", "Training FLOP", "loss")]
            for row in csv.DictReader(file)
        ]
    params, flops, loss = np.array(rows)[np.isfinite(rows).all(axis=1)].T
    tokens = flops / (6 * params)
    kept = np.argsort(tokens / params)[5:]
    params, tokens, loss = params[kept], tokens[kept], loss[kept]
    fit = fit_parametric(params, tokens, loss, bootstrap=200)
    assert (len(kept), fit.converged) == (240, True)
    model = fits_parametric.log_loss_model(np.log(params), np.log(tokens))
    published = np.array([*np.log([BESIROGLU[name] for name in "EAB"]), BESIROGLU["alpha"], BESIROGLU["beta"]])
    theirs, _ = fits_robust.objective(published, model, np.log(loss), np.ones(240), 1e-3)
    assert fit.objective <= theirs < 1.01 * fit.objective
    assert pytest.approx(BESIROGLU["E"], abs=1e-4) == fit.E
    assert (fit.alpha, fit.beta) == pytest.approx((BESIROGLU["alpha"], BESIROGLU["beta"]), abs=2e-3)
    assert all(low <= BESIROGLU[name] <= high for name, (low, high) in fit.ci95.items())
