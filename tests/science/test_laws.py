"""Laws with known constants: what they foretell, how far to trust it, and that a fit on disk says the same."""

import json
import math

import numpy as np
import pytest
from scipy import optimize

from bigjax.errors import UserError
from bigjax.science.laws.formula import predictions, stored
from bigjax.science.laws.study import METHODS, Choices, study
from bigjax.science.scaling_laws import FitError, Law, compute_optimal, fit_downstream, load_fit, make_points
from tests.scaling_points import BESIROGLU, HOFFMANN, best_size, isoflop_runs, loss_of
from tests.science.test_repeated_data import MUENNIGHOFF, repeated_loss


def test_a_law_of_five_published_numbers_says_what_its_paper_does():
    """Hoffmann et al. 2022: exponents 0.46 and 0.54 (table 2, approach 3). Besiroglu et al. 2024, section 3: the refit
    asks for about 20 tokens per parameter at the compute of Chinchilla."""
    law = Law.chinchilla(**HOFFMANN)
    assert law.loss(70e9, 1.4e12) == pytest.approx(loss_of(HOFFMANN, 70e9, 1.4e12), rel=1e-14)
    assert law.loss(np.array([1e9, 2e9]), 1e11).shape == (2,) and law.interval(1e9, 1e10) is None
    for flops in (1e19, 5.76e23):
        best = law.optimal(flops)
        assert pytest.approx(best_size(HOFFMANN, flops), rel=1e-5) == best.N
        assert pytest.approx(flops, rel=1e-9) == 6 * best.N * best.D
        assert best.loss == pytest.approx(law.loss(best.N, best.D), rel=1e-12)
    growth = math.log10(law.optimal(1e22).N / law.optimal(1e21).N)
    assert growth == pytest.approx(0.46, abs=0.01)
    assert Law.chinchilla(**BESIROGLU).optimal(5.76e23).tokens_per_parameter == pytest.approx(20, rel=0.25)


def test_repeated_data_is_worth_what_the_published_law_says():
    """Equations 5 and 6 of Muennighoff et al. 2023 with plain numbers; the optimum by SciPy's search over them."""
    law = Law.chinchilla(**MUENNIGHOFF).repeating(R_D_star=15.387756, R_N_star=5.309743)
    for size, tokens, unique in ((1e8, 1e11, 1e9), (1e10, 1e10, 1e10), (1e9, 4e9, 1e9)):
        expected = repeated_loss(MUENNIGHOFF, size, tokens, unique, 15.387756, 5.309743)
        assert law.loss(size, tokens, unique) == pytest.approx(expected, rel=1e-12)
    assert law.loss(1e9, 1e10) == law.loss(1e9, 1e10, 1e10) == law.loss(1e9, 1e10, 1e12)

    def along(log_size):
        size = math.exp(log_size)
        return repeated_loss(MUENNIGHOFF, size, 1e22 / 6 / size, min(1e10, 1e22 / 6 / size), 15.387756, 5.309743)

    found = optimize.minimize_scalar(along, bounds=(18, 25), method="bounded", options={"xatol": 1e-10})
    best = law.optimal(1e22, unique_tokens=1e10)
    assert math.log(best.N) == pytest.approx(found.x, abs=1e-3) and best.loss == pytest.approx(found.fun, rel=1e-9)
    assert best.N < law.optimal(1e22).N or best.D > law.optimal(1e22).D
    with pytest.raises(UserError, match="does not know of repeated data"):
        Law.chinchilla(**HOFFMANN).loss(1e9, 1e10, unique_tokens=1e9)


def test_the_optimum_of_another_law_is_that_of_a_search():
    law = Law.of("E + (A/N**a + B/D)**b", E=1.5, A=4000.0, B=6e8, a=0.8, b=0.4)
    found = optimize.minimize_scalar(
        lambda z: law.loss(math.exp(z), 1e20 / 6 / math.exp(z)),
        bounds=(14, 26),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert math.log(law.optimal(1e20).N) == pytest.approx(found.x, abs=1e-3)
    for text, words in (("E + A/N**a", "none of N and D alone"), ("E + A*N/D", "no minimum in N")):
        with pytest.raises(UserError, match=words):
            Law.of(text, **{name: 0.5 for name in ("E", "A", "a") if name in text}).optimal(1e20)
    with pytest.raises(UserError, match="above 0"):
        law.optimal(-1.0)
    with pytest.raises(UserError, match=r"needs D \(tokens\)"):
        law.loss(1e9)
    with pytest.raises(UserError, match="N must be a finite number above 0"):
        law.loss(-1e9, 1e9)


@pytest.fixture(scope="module")
def found():
    """A study of 35 runs, a third of whose accuracies are not known."""
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=0)
    accuracy = 0.25 + 0.6 / (1 + np.exp(3 * (loss - 2.9))) + np.random.default_rng(1).normal(0, 0.005, 35)
    accuracy[::3] = np.nan
    unique = np.minimum(tokens, 3e9)
    points = make_points(params, tokens, loss, extra={"unique_tokens": unique, "accuracy": accuracy})
    choices = Choices(law="E + A/N**alpha + B/D**beta", x="N", base=Law.chinchilla(**HOFFMANN))
    methods = (*METHODS, "power", "data_constrained", "downstream", "formula")
    return study(points, methods, bootstrap=60, choices=choices)


def test_a_fit_on_disk_says_what_the_fit_said(found, tmp_path):
    stored.save(found, tmp_path)
    fit, laws = found.parametric, stored.laws_of(found)
    law = load_fit(tmp_path, "parametric")
    assert set(laws) == {"parametric", "isoflop", "power", "data_constrained", "formula"}
    assert law.loss(1e9, 1e10) == pytest.approx(float(fit.predict(np.array([1e9]), np.array([1e10]))[0]), rel=1e-12)
    ends = fit.predict_interval(np.array([1e9]), np.array([1e10]))[:, 0]
    assert law.interval(1e9, 1e10) == pytest.approx(list(ends), rel=2e-3)  # the same replicates, other draws of noise
    (best,) = compute_optimal(fit, 1e22)
    mine = law.optimal(1e22)
    assert (mine.N, mine.D, mine.loss) == pytest.approx((best.N, best.D, best.loss), rel=1e-4)
    for name, ends in best.ci95.items():
        assert mine.ci95[name] == pytest.approx(ends, rel=2e-4)
    for method, before in laws.items():
        after = load_fit(tmp_path, method)
        assert after.parameters == before.parameters and (after.replicates == before.replicates).all()
        assert after.fitted == before.fitted and after.flop_model == before.flop_model
    assert load_fit(str(tmp_path)).method == "formula"
    isoflop = load_fit(tmp_path, "isoflop").optimal(1e22)
    (best,) = compute_optimal(found.isoflop, 1e22)
    assert pytest.approx(isoflop.N) == best.N and isoflop.ci95["N"] == pytest.approx(best.ci95["N"])
    with pytest.raises(UserError, match="not its loss"):
        load_fit(tmp_path, "isoflop").loss(1e9, 1e10)
    assert load_fit(tmp_path, "power").loss(N=1e9) == pytest.approx(float(found.others["power"].predict(1e9)))
    for text, words in (("{", "damaged"), ('{"format": 2, "laws": {}}', "is of format 2"), ("[]", "damaged")):
        (tmp_path / "law.json").write_text(text)
        with pytest.raises(UserError, match=words):
            load_fit(tmp_path)
    with pytest.raises(UserError, match="holds no fit"):
        load_fit(tmp_path / "none")


def test_what_is_asked_is_foretold_and_what_is_far_is_said(found):
    laws = stored.laws_of(found)
    asked = predictions.read("N=1e9,D=1e10 ; C=1e20; N=7e9,D=2e12;N=1e9,C=6e19;D=1e10,C=6e19;C=1e25,U=1e12")
    said = [row for row in predictions.predict(laws, asked) if row.method == "parametric"]
    near, best, far, by_c, by_d = said
    assert near.loss == by_c.loss == pytest.approx(by_d.loss) and near.notes == ()
    assert near.loss_ci95[0] < near.loss < near.loss_ci95[1]
    assert best.size_ci95[0] < best.N < best.size_ci95[1]
    assert far.notes[0] == "D=2e+12 is 4.378 times the largest fitted, 4.57e+11: extrapolated"
    assert far.notes[1].startswith("C=8.4e+22 is 84")
    assert any("L=2.0" in note and "of the smallest fitted" in note for note in far.notes)
    assert 0.25 < far.accuracy_ci95[0] < far.accuracy < far.accuracy_ci95[1] <= 1
    text = predictions.to_markdown([far])
    assert "predicted by parametric at N=7e+09, D=2e+12: loss 2.02" in text and "extrapolated" in text
    assert json.dumps(predictions.to_json(said))
    # Only the law of repeated data knows unique tokens.
    assert {row.method for row in predictions.predict(laws, predictions.read("C=1e20,U=1e9"))} == {"data_constrained"}
    for text, words in (
        ("", "asks for nothing"),
        ("N", "write it as"),
        ("N=many", "no finite number"),
        ("N=-1,D=1", "must be above 0"),
        ("N=1,N=2", "twice"),
        ("N=1,D=1;;M=2", "'M' is no variable of the law"),
        ("N=1e9,D=1e9,C=1e9", "two of the three"),
    ):
        with pytest.raises(UserError, match=words):
            predictions.predict({"parametric": laws["parametric"]}, predictions.read(text))


@pytest.mark.parametrize("link", ["sigmoid", "exponential"])
def test_accuracy_follows_from_the_loss(link):
    """Exact points of both forms give their constants back (Bhagia et al. 2024; Gadre et al. 2024)."""
    loss = np.linspace(2.2, 4.2, 25)
    accuracy = {
        "sigmoid": 0.25 + 0.6 / (1 + np.exp(3 * (loss - 2.9))),
        "exponential": 1 - (0.75 - 6 * np.exp(-1.1 * loss)),
    }[link]
    fit = fit_downstream(loss, accuracy, link=link, bootstrap=0)
    expected = {"sigmoid": {"floor": 0.25, "span": 0.6, "slope": 3, "middle": 2.9},
                "exponential": {"eps": 0.75, "k": 6, "gamma": 1.1}}[link]  # fmt: skip
    assert fit.converged and fit.parameters == pytest.approx(expected, rel=1e-3)
    noisy = accuracy + np.random.default_rng(0).normal(0, 0.004, 25)
    found = optimize.curve_fit(
        lambda x, *p: fit.fit.formula.value({"L": x, **dict(zip(expected, p, strict=True))}), loss, noisy,
        list(expected.values()),
    )[0]  # fmt: skip
    mine = fit_downstream(loss, noisy, link=link, bootstrap=0)  # below delta all errors are squares
    assert [mine.parameters[name] for name in expected] == pytest.approx(found, rel=2e-2)


def test_accuracies_that_are_none_are_refused():
    loss = np.linspace(2, 4, 10)
    for accuracy, words in (
        (np.linspace(20, 90, 10), "divide per cents by 100"),
        (np.full(10, 0.3), "all are the same"),
        (np.where(loss > 2.5, np.nan, 0.1 * loss), "5 or more"),
    ):
        with pytest.raises(FitError, match=words):
            fit_downstream(loss, accuracy)
    flat = 0.25 + np.random.default_rng(0).normal(0, 0.01, 10)
    assert any("explains nothing" in warning for warning in fit_downstream(loss, flat, bootstrap=0).warnings)
