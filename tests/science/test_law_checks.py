"""Diagnostics of laws: leverage and trends as in textbooks, verdicts that hold, and curves by SciPy's own routines."""

import numpy as np
import pytest
from scipy import interpolate, optimize, stats

from bigjax.science.laws.diagnostics import held_out, residuals
from bigjax.science.laws.formula.options import read
from bigjax.science.laws.isoflop import compare_curves
from bigjax.science.laws.study import Choices, fit_own, fitter, study
from bigjax.science.scaling_laws import FitError, Law, fit_downstream, fit_formula, fit_isoflop, make_points
from tests.scaling_points import HOFFMANN, best_size, isoflop_runs, loss_of

LAW = "E + A/N**alpha + B/D**beta"


def runs(noise=0.003, seed=0, **how):
    return make_points(*isoflop_runs(HOFFMANN, noise=noise, seed=seed, **how))


def test_leverage_is_the_diagonal_of_the_hat_matrix():
    """Hoaglin and Welsch 1978; of a straight line 1/n + (x - mean)² / sum, and the residuals' variances follow."""
    x = np.array([1.0, 2, 3, 4, 20])
    design, error = np.stack([np.ones(5), x], axis=1), np.array([0.1, -0.2, 0.1, 0.05, -0.05])
    rows = residuals.leverage(error, design, np.ones(5), list("abcde"))
    expected = 1 / 5 + (x - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    assert {row["point"]: row["leverage"] for row in rows} == pytest.approx(dict(zip("abcde", expected, strict=True)))
    assert rows[0]["point"] == "e" and sum(row["leverage"] for row in rows) == pytest.approx(2)
    noise = np.sqrt(error @ error / 3)
    assert rows[0]["studentised"] == pytest.approx(error[4] / noise / np.sqrt(1 - expected[4]))
    assert any("e 0.98" in text for text in residuals.sentences([], rows, 2))


def test_a_trend_in_the_residuals_is_found_by_the_f_test_and_seldom_where_there_is_none():
    rng = np.random.default_rng(0)
    size = np.geomspace(1e7, 1e9, 20)
    error = 0.01 * np.log(size / 1e8) ** 2 + rng.normal(0, 0.002, 20)
    (row,) = residuals.trends(error, {"N": size, "flat": np.ones(20)}, np.ones(20))
    left = np.polyfit(np.log(size), error, 2, full=True)[1][0]
    total = ((error - error.mean()) ** 2).sum()
    assert row["explained"] == pytest.approx(1 - left / total)
    assert row["p"] == pytest.approx(stats.f.sf((total - left) / 2 / (left / 17), 2, 17))
    assert "follows N" in next(residuals.sentences([row], [{"leverage": 0.1, "point": "a"}], 1))
    points = runs()
    half = study(points, ("formula",), bootstrap=20, choices=Choices(law="E + A/N**alpha"))
    left = {row["column"] for row in half.checks["diagnostics_formula"]["trends"] if row["p"] < 1e-6}
    assert left >= {"D", "D/N"}


def test_the_law_that_made_the_points_wins_and_twins_do_not():
    points = runs()
    right, wrong = (fitter(Choices(law=law), 1e-3) for law in (LAW, "E + A/C**alpha"))
    found = held_out.compare(points, right, wrong, ("right", "wrong"))
    assert found["better"] == "right" and "right is better" in held_out.verdict(found)
    assert found["ci95"][1] < 0 and found["rms_relative_error"][0] < found["rms_relative_error"][1]
    twins = held_out.compare(points, right, fitter(Choices(law=LAW, error="absolute"), 3e-3), ("one", "other"))
    assert twins["better"] is None and "not decidable" in held_out.verdict(twins)
    # The interval is Student's t of the budgets' differences.
    errors = [held_out.without_each_budget(points, each)[0] for each in (right, wrong)]
    by_budget = np.abs(errors[0]).reshape(5, 7).mean(axis=1) - np.abs(errors[1]).reshape(5, 7).mean(axis=1)
    assert found["ci95"] == pytest.approx(stats.ttest_1samp(by_budget, 0).confidence_interval(), rel=1e-9)
    with pytest.raises(FitError, match="same compute budget"):
        held_out.without_each_budget(points.take(np.arange(7)), right)


@pytest.mark.parametrize("how", ["cubic", "akima"])
def test_minima_of_other_curves_are_those_of_scipy(how):
    points = runs(noise=0.002, seed=1, width=4.0, sizes=9)
    fit = fit_isoflop(points, bootstrap=60, interpolate=how)
    for flops, size, loss in zip(fit.flops, fit.params, fit.loss, strict=True):
        rows = np.isclose(points.flops, flops)
        x, y = np.log(points.params[rows]), points.loss[rows]
        through = interpolate.Akima1DInterpolator(x, y) if how == "akima" else np.poly1d(np.polyfit(x, y, 3))
        grid = np.linspace(x.min(), x.max(), 20_001)
        start = grid[np.argmin(through(grid))]
        found = optimize.minimize_scalar(through, bounds=(start - 0.02, start + 0.02), method="bounded")
        # Of Akima's curve 401 points are looked at: the parabola through three is off by less than a tenth of a step.
        assert np.log(size) == pytest.approx(found.x, abs=1e-3 if how == "akima" else 1e-5)
        assert loss == pytest.approx(float(through(np.log(size))), rel=1e-9)
    low, high = fit.ci95["N_exponent"]
    assert low < fit.parameters["N_exponent"] < high
    exact = fit_isoflop(runs(noise=0.0, width=4.0, sizes=21), bootstrap=0, interpolate=how)
    assert exact.params == pytest.approx(best_size(HOFFMANN, exact.flops), rel=5e-3)


def test_what_the_curve_and_the_window_change_is_said():
    """On the widest of grids a parabola is off by what its curvature says; nearer to the minimum the bias goes."""
    points = runs(noise=0.0, sizes=15, width=12.0)
    rows = {(row["interpolate"], row["window"]): row for row in compare_curves(points)}
    best = best_size(HOFFMANN, 1e21)
    off = {key: abs(np.log(row["N"] / best)) for key, row in rows.items() if "skipped" not in row}
    assert off["parabola", None] > 3 * off["parabola", 4.0] > off["parabola", 2.0]
    assert off["cubic", None] < 0.5 * off["parabola", None] and off["akima", None] < 0.02
    windowed = fit_isoflop(points, bootstrap=0, window=4.0)
    assert windowed.n_points < len(points) and windowed.window == 4.0
    with pytest.raises(FitError, match="factor above 1"):
        fit_isoflop(points, bootstrap=0, window=0.5)
    # Sizes that differ in the last digits are one: no spikes between them.
    twice = make_points(
        np.concatenate([points.params, points.params * (1 + 1e-7)]), np.tile(points.tokens, 2), np.tile(points.loss, 2)
    )
    both = [fit_isoflop(each, bootstrap=0, interpolate="akima").params for each in (points, twice)]
    assert both[0] == pytest.approx(both[1], rel=1e-4)


def noise_of(kind: str, params: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return errors of log loss: equal, six times as large for small models, or with one wild point in twelve."""
    spread = np.full(len(params), 0.003)
    if kind == "unequal":
        spread = np.interp(np.log(params), np.log([params.min(), params.max()]), [0.006, 0.001])
    if kind == "outliers":
        spread = np.where(rng.random(len(params)) < 1 / 12, 0.03, spread)
    return rng.normal(0, 1, len(params)) * spread


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["equal", "unequal", "outliers"])
@pytest.mark.parametrize(("budgets", "sizes"), [(5, 7), (3, 4)], ids=["35 points", "12 points"])
def test_intervals_hold_the_truth_at_the_nominal_rate(kind, budgets, sizes):
    """40 simulations; misses of 95 % intervals are bounded by the binomial at 1 in 1,000, over six quantities."""
    params, tokens, _ = isoflop_runs(HOFFMANN, budgets=budgets, sizes=sizes)
    start = ",".join(f"{name}={HOFFMANN[name]}" for name in ("alpha", "beta"))
    misses = dict.fromkeys([*HOFFMANN, "N"], 0)
    for seed in range(simulations := 40):
        rng = np.random.default_rng(seed)
        loss = loss_of(HOFFMANN, params, tokens) * np.exp(noise_of(kind, params, rng))
        fit = fit_formula(
            LAW, {"N": params, "D": tokens}, loss, bootstrap=80, seed=seed, asked=read("E=0:,A=0:,B=0:", None, start)
        )
        best = Law(fit.formula, fit.parameters, replicates=fit.replicates).optimal(1e22)
        for name, (low, high) in (fit.ci95 | {"N": best.ci95["N"]}).items():
            misses[name] += not low <= (HOFFMANN | {"N": best_size(HOFFMANN, 1e22)})[name] <= high
    assert max(misses.values()) <= stats.binom.ppf(1 - 0.001 / 6, simulations, 0.05), misses


@pytest.mark.exhaustive
def test_accuracies_foretold_in_two_steps_hold_at_the_nominal_rate():
    """A run of ten times the largest budget, its accuracy with noise of its own, through both laws."""
    size = best_size(HOFFMANN, 1e22)
    tokens = 1e22 / 6 / size
    misses, simulations = 0, 60

    def accuracy_of(loss, rng):
        return 0.25 + 0.6 / (1 + np.exp(3 * (loss - 2.9))) + rng.normal(0, 0.006, np.shape(loss))

    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        points = runs(seed=seed)
        law = fit_own(points, Choices(law=LAW, asked=read("E=0:", None, "alpha=0.34,beta=0.28")), bootstrap=80)
        link = fit_downstream(points.loss, accuracy_of(points.loss, rng), bootstrap=80, seed=seed).fit
        second = Law(link.formula, link.parameters, "downstream", "absolute", link.replicates, link.residuals)
        first = Law(law.formula, law.parameters, replicates=law.replicates, noise=law.residuals)
        _, (low, high) = first.with_accuracy(second).accuracy(size, tokens)
        loss = loss_of(HOFFMANN, size, tokens) * np.exp(rng.normal(0, 0.003))
        misses += not low <= accuracy_of(loss, rng) <= high
    assert misses <= stats.binom.ppf(0.999, simulations, 0.05)


@pytest.mark.exhaustive
def test_a_wrong_law_is_found_out_and_a_right_one_seldom_doubted():
    """The trend test is at 1 % a law; a verdict between laws of one form is wrong in no more than 5 %."""
    doubted, found, wrong = 0, 0, 0
    for seed in range(simulations := 25):
        points = runs(seed=seed)
        near = Choices(law=LAW, asked=read(None, None, "alpha=0.34,beta=0.28"))
        right = fit_own(points, near, bootstrap=0)
        half = fit_own(points, Choices(law="E + A/N**alpha"), bootstrap=0)
        columns = {"N": points.params, "D": points.tokens, "C": points.flops, "D/N": points.tokens / points.params}
        for fit in (right, half):
            rows = residuals.trends(fit.residuals, columns, points.weight)
            seen = any(row["p"] < residuals.TREND / len(rows) for row in rows)
            doubted, found = doubted + (seen and fit is right), found + (seen and fit is half)
        other = fitter(Choices(law=LAW, loss="squares", asked=near.asked), 1e-3)
        wrong += held_out.compare(points, fitter(near, 1e-3), other, ("a", "b"))["better"] is not None
    assert found == simulations
    assert doubted <= stats.binom.ppf(0.999, simulations, 0.01)
    assert wrong <= stats.binom.ppf(0.999, simulations, 0.05)


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", ["cubic", "akima"])
@pytest.mark.parametrize("noise", [0.002, (0.006, 0.004, 0.003, 0.002, 0.001)], ids=["equal", "unequal"])
def test_intervals_of_other_curves_hold_the_truth_at_the_nominal_rate(how, noise):
    """60 simulations; the noise of a budget is its own, and the bound the binomial's at 1 in 1,000."""
    exponent, misses = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"]), 0
    each = np.repeat(np.broadcast_to(noise, 5), 9)
    for seed in range(simulations := 60):
        points = make_points(*isoflop_runs(HOFFMANN, width=4.0, noise=each, sizes=9, seed=seed))
        low, high = fit_isoflop(points, bootstrap=200, seed=seed, interpolate=how).ci95["N_exponent"]
        misses += not low <= exponent <= high
    assert misses <= stats.binom.ppf(0.999, simulations, 0.05)
