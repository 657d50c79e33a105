"""Laws of one's own: what a formula may hold, its derivatives, and fits that SciPy's own routines confirm."""

import ast
import time

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import optimize

from bigjax.science.laws.formula import options
from bigjax.science.laws.formula.fit import fit_formula
from bigjax.science.scaling_laws import FitError, Law, fit_parametric, parse
from tests.fuzzing import attempt, lengths, search
from tests.scaling_points import HOFFMANN, isoflop_runs

LAW = "E + A/N**alpha + B/D**beta"


@pytest.fixture(scope="module")
def runs():
    """35 runs of Hoffmann et al.'s law with 0.3 % noise, by the names that they have in a law."""
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=0)
    return {"N": params, "D": tokens}, loss


FORMULAS = (
    LAW,
    "E + (A/(N + N0))**alpha * D**-beta",
    "b + a/(1 + exp(k*(log(N) - m))) - min(D, c*N, 3)",
    "max(E, A/N**alpha) + sqrt(B*D) - -2e-3*N**2",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_values_are_those_of_python_and_derivatives_those_of_differences(text):
    """Python's own arithmetic on plain numbers; SciPy's finite differences."""
    formula, rng = parse(text), np.random.default_rng(0)
    names = {name: float(value) for name, value in zip(formula.names, rng.uniform(0.4, 1.6, 20), strict=False)}
    plain = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "min": min, "max": max}
    expected = eval(text, {"__builtins__": {}}, plain | names)
    assert formula.value(names) == pytest.approx(expected, rel=1e-14)
    parameters = [name for name in formula.names if name not in "ND"]
    value, slopes = formula.derivatives(names, parameters)

    def of(vector):
        return formula.value(names | dict(zip(parameters, vector, strict=True)))

    point = np.array([names[name] for name in parameters])
    differences = optimize.approx_fprime(point, of, 1e-7)
    assert value == pytest.approx(expected) and [slopes[name] for name in parameters] == pytest.approx(
        differences, abs=1e-5
    )
    assert parse(formula.source).value(names) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("E + A/N^alpha", r"\^, which is no power"),
        ("A/0 + N", "divides by zero: 'A / 0'"),
        ("A/(2 - 2*1) + N", "divides by zero"),
        ("9**9**9**9*N", "without a finite value"),
        (f"N*1{'0' * 400}", "without a finite value|too large"),
        ("__import__('os').system('x')", 'has "\'"'),
        ("E + N.real", "has 'N.real'"),
        ("().__class__", "has '"),
        ("E + N[0]", r"has '\['"),
        ("True*N", "has 'True'"),
        ("1j*N", "has '1j'"),
        ("N if E else D", "has 'N if E else D'"),
        ("E < N", "has '<'"),
        ("sin(N)", "has 'sin"),
        ("exp + N", "exp without its argument"),
        ("exp(N, D)", "exp takes one argument"),
        ("min(N)", "min takes two arguments or more"),
        ("min(N, *E)", "has"),
        ("E + (A/N", "cannot be read"),
        ("E + A N", "cannot be read near"),
        ("E \\ N", "has"),
        ("0x", "cannot be read"),
        ("E + α/N", "has 'α'"),
        ("1 + 2", "no parameter and no column"),
        ("(" * 60 + "N" + ")" * 60 + "+" + "-" * 60 + "N", "nested more than|has more"),
        ("+".join(f"a{i}*N" for i in range(30)), "30|31 names"),
        ("N+" * 300 + "N", "601 characters"),
    ],
)
def test_what_is_no_formula_is_refused_in_a_sentence(text, words):
    with pytest.raises(FitError, match=words) as refused:
        parse(text)
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


ATOMS = st.sampled_from(
    ["N", "D", "E", "A", "alpha", "0", "1", "2.5", "4.0e-9", "1e308", "x", "True", "exp", "'s'", "N.x"]
)
JOINED = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("({}{}{})".format, inner, st.sampled_from(["+", "-", "*", "/", "**", "//", "<", ","]), inner),
        st.builds("{}({})".format, st.sampled_from(["exp", "log", "sqrt", "min", "max", "-", "eval"]), inner),
    ),
    max_leaves=8,
)


@lengths(150, 3_000)
def test_any_text_is_a_formula_or_a_sentence(count, record_property):
    """What is read is evaluated without a warning, an exception or a long wait; nothing is run."""
    values = {"N": np.array([1e6, 1e9]), "D": np.array([1e9, 1e10])}

    def case(text):
        with attempt():
            began = time.process_time()
            formula = parse(text)
            given = values | {name: np.float64(0.5) for name in formula.names if name not in values}
            formula.derivatives(given, formula.names)
            assert {type(node).__name__ for node in ast.walk(formula.tree)} <= {
                *("BinOp", "UnaryOp", "Name", "Load", "Constant", "Call"),
                *("Add", "Sub", "Mult", "Div", "Pow", "UAdd", "USub"),
            }
            assert time.process_time() - began < 5

    search(count, case, st.one_of(JOINED, st.text(max_size=30), st.text("NDEA+-*/().,e0123456789 ", max_size=40)))
    record_property("fuzz_cases", count)


@lengths(40, 1_000)
def test_any_bounds_ties_and_starts_are_read_or_a_sentence(count):
    part = st.builds(
        "{}{}{}".format,
        st.sampled_from(["E", "alpha", "", "1x", "N"]),
        st.sampled_from(["=", "", "=="]),
        st.sampled_from(["0:2", "beta", "0.1|0.3", "nan", ":", "2:0", "1e999", "x|y", "E"]),
    )
    text = st.one_of(st.none(), st.lists(part, max_size=3).map(",".join), st.text(max_size=12))

    def case(bounds, tie, start):
        with attempt():
            options.read(bounds, tie, start).check(("E", "alpha", "beta"))

    search(count, case, text, text, text)


def test_the_published_law_is_found_as_the_parametric_fit_finds_it(runs):
    columns, loss = runs
    own, fit = fit_formula(LAW, columns, loss, bootstrap=100), fit_parametric(*columns.values(), loss, bootstrap=100)
    assert own.converged and own.objective == pytest.approx(fit.objective, rel=1e-6)
    for name, value in fit.parameters.items():
        assert own.parameters[name] == pytest.approx(value, rel=1e-4)
        assert own.ci95[name] == pytest.approx(fit.ci95[name], rel=5e-3)


@pytest.mark.parametrize("error", ["log", "absolute"])
@pytest.mark.parametrize("kind", ["huber", "squares"])
def test_scipy_finds_no_better_optimum(runs, error, kind):
    """`scipy.optimize.least_squares` minimises the same sum: its Huber rho is twice ours over f_scale squared."""
    columns, loss = runs
    weight = np.linspace(0.5, 2, len(loss))
    fit = fit_formula(LAW, columns, loss, error=error, loss=kind, weight=weight, bootstrap=0)
    root = np.sqrt(weight)

    def errors(theta):
        value = theta[0] + theta[1] / columns["N"] ** theta[2] + theta[3] / columns["D"] ** theta[4]
        return np.log(value / loss) if error == "log" else value - loss

    def objective(theta):
        size = np.abs(errors(theta))
        return weight @ np.where((kind == "squares") | (size <= 1e-3), size**2 / 2, 1e-3 * (size - 5e-4))

    theta = np.array([fit.parameters[name] for name in ("E", "A", "alpha", "B", "beta")])
    assert objective(theta) == pytest.approx(fit.objective, rel=1e-9)
    assert fit.residuals == pytest.approx(-errors(theta), rel=1e-6, abs=1e-12)
    scale = [1.69, 406.4, 0.34, 410.7, 0.28]
    if kind == "squares":
        found = optimize.least_squares(lambda t: root * errors(t), scale, x_scale=scale, xtol=1e-15, ftol=1e-15).x
        assert theta == pytest.approx(found, rel=1e-4)
    else:
        options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-16, "adaptive": True}
        found = optimize.minimize(lambda t: objective(t * scale), np.ones(5), method="Nelder-Mead", options=options)
        found = found.x * scale
    assert fit.objective <= objective(found) * (1 + 1e-6)


def test_intervals_are_those_of_curve_fit_where_noise_is_equal(runs):
    """A straight line in log N: `curve_fit` has the covariance s² (X'X)⁻¹, and Student's t gives the interval."""
    columns, _ = runs
    x = np.log(columns["N"])
    y = 5 - 0.1 * x + np.random.default_rng(1).normal(0, 0.02, len(x))
    fit = fit_formula("a + b*log(N)", columns, y, error="absolute", loss="squares", bootstrap=4000)
    theta, covariance = optimize.curve_fit(lambda z, a, b: a + b * z, x, y)
    assert list(fit.parameters.values()) == pytest.approx(theta, rel=1e-6)
    half = 2.035 * np.sqrt(np.diag(covariance))  # t(0.975) of 33 degrees of freedom
    widths = [(high - low) / 2 for low, high in fit.ci95.values()]
    # The bootstrap takes the noise as it falls: its variance has a relative error of about sqrt(2 / 35).
    assert widths == pytest.approx(half, rel=0.3)
    # Only the ratio of weights counts, not their size.
    heavy = fit_formula(
        "a + b*log(N)", columns, y, error="absolute", loss="squares", bootstrap=100, weight=np.full(35, 1e6)
    )
    light = fit_formula("a + b*log(N)", columns, y, error="absolute", loss="squares", bootstrap=100)
    assert heavy.ci95["b"] == pytest.approx(light.ci95["b"], rel=1e-6)


def test_a_parameter_that_is_zero_has_an_interval_as_any_other():
    """The covariance of `curve_fit` fails where an optimum is 0 (its default method); a bootstrap's does not."""
    x = np.linspace(-1, 1, 40)
    y = 1 + 0.0 * x**2 + np.random.default_rng(3).normal(0, 0.01, 40)
    fit = fit_formula("a + b*x**2", {"x": x}, y - np.polyfit(x**2, y, 1)[0] * x**2, error="absolute", loss="squares")
    assert fit.parameters["b"] == pytest.approx(0, abs=1e-9) and fit.converged
    low, high = fit.ci95["b"]
    assert -0.02 < low < 0 < high < 0.02


def test_ties_bounds_and_starts_are_kept(runs):
    columns, loss = runs
    tied = fit_formula(LAW, columns, loss, asked=options.read(None, "alpha=beta", None), bootstrap=40)
    written = fit_formula("E + A/N**beta + B/D**beta", columns, loss, bootstrap=40)
    assert tied.parameters == pytest.approx(written.parameters, rel=1e-6) and tied.ties == {"alpha": "beta"}
    bound = fit_formula(
        LAW, columns, loss, asked=options.read("E=0:1.5,alpha=0.2:,beta=:0.9", None, None), bootstrap=60
    )
    assert bound.parameters["E"] == pytest.approx(1.5, abs=1e-3) and "E lies at its bound" in bound.warnings[0]
    free = fit_formula(LAW, columns, loss, asked=options.read("E=0:2.5,alpha=0.2:,beta=:0.9", None, None), bootstrap=60)
    plain = fit_formula(LAW, columns, loss, bootstrap=60)
    assert free.parameters == pytest.approx(plain.parameters, rel=1e-4) and free.warnings == ()
    assert free.ci95["alpha"] == pytest.approx(plain.ci95["alpha"], abs=1e-3)
    started = fit_formula(LAW, columns, loss, asked=options.read(None, None, "alpha=0.3|0.5,beta=0.25"), bootstrap=0)
    assert started.objective == pytest.approx(plain.objective, rel=1e-6)


def test_constants_that_are_written_stay(runs):
    """1.6 + 95.18 C^-0.0941, as a team writes its law with a pinned asymptote."""
    flops = np.geomspace(1e18, 1e21, 8)
    fit = fit_formula("1.6 + A*C**-alpha", {"C": flops}, 1.6 + 95.18 * flops**-0.0941, bootstrap=0)
    assert fit.parameters == pytest.approx({"A": 95.18, "alpha": 0.0941}, rel=1e-4)


def test_what_the_points_do_not_determine_may_be_any(runs):
    columns, loss = runs
    fit = fit_formula(f"{LAW} + G*lr", columns, loss, bootstrap=30)  # no column lr: a parameter beside another one
    assert fit.undetermined == ("E", "G", "lr") and fit.ci95["E"] == [-np.inf, np.inf]
    assert any("do not determine E, G, lr" in warning for warning in fit.warnings)
    assert np.isfinite(fit.ci95["alpha"]).all()
    noise = fit_formula("E + A/N**alpha", columns, np.exp(np.random.default_rng(0).normal(0, 0.1, 35)), bootstrap=0)
    assert any("explains nothing" in warning for warning in noise.warnings)


@pytest.mark.parametrize(
    ("law", "change", "words"),
    [
        ("N*D", {}, "no parameter to fit"),
        ("E + A", {}, "uses no column"),
        ("E + A/(N - N)**alpha", {}, r"\(N - N\) \*\* alpha has no finite value at N="),
        ("A*exp(N)", {}, r"exp\(N\) has no finite value"),
        ("A - N", {"asked": options.read("A=:0", None, None)}, "--error=absolute"),
        (LAW, {"asked": options.read("gamma=0:1", None, None)}, "--bounds names 'gamma', which is no parameter"),
        (LAW, {"asked": options.read(None, "alpha=gamma", None)}, "--tie names 'gamma'"),
        (LAW, {"asked": options.read(None, None, "N=1")}, "--start names 'N'"),
        (LAW, {"asked": options.read("E=0:1", None, "E=2")}, "outside of its bounds"),
        (LAW, {"asked": options.read("alpha=0:1", "alpha=beta", None)}, "alpha is tied to beta"),
        (LAW, {"delta": 0.0}, "delta"),
    ],
)
def test_laws_that_cannot_be_fitted_are_refused(runs, law, change, words):
    columns, loss = runs
    with pytest.raises(FitError, match=words):
        fit_formula(law, columns, loss, **change)
    with pytest.raises(FitError, match="distinct points are too few"):
        fit_formula(LAW, {name: values[:4] for name, values in columns.items()}, loss[:4])


def test_a_law_of_five_numbers_is_one_line():
    with pytest.raises(Exception, match="needs a value for alpha"):
        Law.of("A/N**alpha", A=1.0)
    with pytest.raises(Exception, match="no parameter of the law"):
        Law.of("A/N", A=1.0, B=2.0)
    with pytest.raises(Exception, match="finite"):
        Law.of("A/N", A=float("nan"))
