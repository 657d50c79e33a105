"""Fits of runs that repeat their data: the published runs, and planted laws of which only some runs tell."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bigjax.science.laws import data_constrained as fits_data_constrained
from bigjax.science.laws import robust as fits_robust
from bigjax.science.scaling_laws import fit_data_constrained, fit_parametric
from tests.scaling_points import HOFFMANN, isoflop_runs, loss_of

MUENNIGHOFF = {"E": math.exp(0.6254804), "A": math.exp(6.255414), "B": math.exp(7.3049974)}
MUENNIGHOFF |= {"alpha": 0.3526596, "beta": 0.3526596}
"""The law of data seen once of Muennighoff et al. 2023, as in their code, where alpha = beta."""


def law_of(constants):
    """Return a fit that holds exactly these constants."""
    fit = fit_parametric(*isoflop_runs(constants), bootstrap=0)
    return replace(fit, **constants)


def repeated_loss(law, params, tokens, unique_tokens, r_d, r_n):
    """Return the loss of equations 5 and 6 of Muennighoff et al. 2023, written with plain numbers."""
    best = (law["alpha"] * law["A"] / (law["beta"] * law["B"]) * unique_tokens ** law["beta"]) ** (1 / law["alpha"])
    unique_params = min(best, params)
    worth_d = unique_tokens * (1 + r_d * (1 - math.exp(-(tokens / unique_tokens - 1) / r_d)))
    worth_n = unique_params * (1 + r_n * (1 - math.exp(-(params / unique_params - 1) / r_n)))
    return loss_of(law, worth_n, worth_d)


def test_all_published_runs_count():
    """The objective at the published R*_D = 15.4, R*_N = 5.3 is that of their code; the fit finds no worse one.

    29 of the 182 runs repeat nothing, 15 of these are larger than is optimal for their tokens.
    """
    columns = np.loadtxt(Path(__file__).parent / "muennighoff2023" / "runs.csv", delimiter=",", skiprows=1).T
    params, tokens, unique_tokens, loss = columns
    assert (len(loss), int((tokens <= unique_tokens).sum())) == (182, 29)
    base = law_of(MUENNIGHOFF)
    model = fits_data_constrained._log_model(base.theta, params, tokens, unique_tokens)
    log_stars = np.log([15.387756, 5.309743])
    published, _ = fits_robust.objective(log_stars, model, np.log(loss), np.ones(182), 1e-3)
    assert published == pytest.approx(0.01582594, abs=5e-9)
    fit = fit_data_constrained(*columns, base=base, bootstrap=40)
    assert fit.n_points == 182 and fit.converged
    assert fit.objective == pytest.approx(0.01580466, abs=5e-9) and fit.objective < published
    assert (fit.R_D_star, fit.R_N_star) == pytest.approx((95.4, 1.71), rel=3e-3)
    assert fit.predict(params, tokens, unique_tokens) == pytest.approx(
        [repeated_loss(MUENNIGHOFF, *row, fit.R_D_star, fit.R_N_star) for row in columns[:3].T], rel=1e-12
    )


@pytest.mark.parametrize("beyond", [1.0, 3.0], ids=["as many unique tokens", "more unique tokens than are read"])
def test_runs_that_repeat_nothing_tell_what_parameters_in_excess_are_worth(beyond):
    """Small models repeat and large ones do not: without the latter nothing would be known of R*_N."""
    base = law_of(HOFFMANN)
    small = [(1e6, 1e9 * r, 1e9) for r in (1, 2, 4, 8, 16, 40)]
    large = [(size, tokens, tokens * beyond) for size in (1e8, 1e9, 1e10) for tokens in (1e8, 3e8, 1e9)]
    rows = np.array(small + large)
    loss = np.array([repeated_loss(HOFFMANN, n, d, min(u, d), 12.0, 4.0) for n, d, u in rows])
    fit = fit_data_constrained(*rows.T, loss, base=base, bootstrap=20)
    assert (fit.R_D_star, fit.R_N_star) == pytest.approx((12.0, 4.0), rel=1e-3)
    assert fit.warnings == () and fit.n_points == len(rows)
    alone = fit_data_constrained(*np.array(small).T, loss[:6], base=base, bootstrap=0)
    assert "R_N_star is not determined" in alone.warnings[0]
