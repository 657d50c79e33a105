"""experiments.fit with one's own law, repeated data, accuracies and predictions: what it writes and refuses."""

import html.parser

import numpy as np
import pytest

from bigjax.science.laws import sources
from bigjax.science.scaling_laws import load_fit, read_csv
from tests.commands import ROOT, read
from tests.scaling_points import HOFFMANN, best_size, isoflop_runs
from tests.science.test_fit_command import refused, run, write_csv
from tests.science.test_repeated_data import MUENNIGHOFF

LAW = "E + A/N**alpha + B/D**beta"
REPEATED = ROOT / "tests" / "science" / "muennighoff2023" / "runs.csv"


@pytest.fixture(scope="module")
def columns():
    """Runs as another program names their columns, with accuracies and a learning rate that does nothing."""
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=0)
    rng = np.random.default_rng(1)
    accuracy = 0.25 + 0.6 / (1 + np.exp(3 * (loss - 2.9))) + rng.normal(0, 0.005, 35)
    return {"n_active": params, "D": tokens, "loss": loss, "acc": accuracy, "lr": 10 ** rng.uniform(-4, -3, 35)}


NAMES = "--columns=params=n_active,tokens=D,accuracy=acc"


def test_all_that_the_columns_allow_is_fitted_shown_and_foretold(columns, tmp_path, capsys):
    path, out = write_csv(tmp_path / "runs.csv", columns), tmp_path / "out"
    run(
        f"--csv={path}", NAMES, f"--out={out}", "--bootstrap=40", "--predict=N=7e9,D=2e12;C=1e24", "--interpolate=cubic"
    )
    said, found = capsys.readouterr().out, read(out / "fit.json")
    assert {"parametric", "isoflop", "downstream"} <= set(found) and found["isoflop"]["interpolate"] == "cubic"
    for name, value in {"floor": 0.25, "span": 0.6, "slope": 3, "middle": 2.9}.items():
        assert found["downstream"][name] == pytest.approx(value, rel=0.15)
        low, high = found["downstream"]["ci95"][name]
        assert low < found["downstream"][name] < high
    assert [row["method"] for row in found["predictions"]] == ["parametric", "parametric", "isoflop"]
    one, best, _ = found["predictions"]
    assert one["accuracy_ci95"][0] < one["accuracy"] < one["accuracy_ci95"][1]
    assert best["N"] == pytest.approx(best_size(HOFFMANN, 1e24), rel=0.3)
    assert "note: C=1e+24 is 1000 times the largest fitted, 1e+21: extrapolated" in said
    assert "columns that are not read: lr" in said and "curves: the exponent of N is" in said
    assert "parametric residuals: no trend against N, D, C, D/N" in said and "parametric leverage: above" in said
    assert len(found["isoflop"]["curves"]) == 9 and found["parametric"]["diagnostics"]["leverage"]
    law = load_fit(out)
    assert law.loss(7e9, 2e12) == pytest.approx(one["loss"]) and pytest.approx(best["N"]) == law.optimal(1e24).N
    page = (out / "index.html").read_text()
    assert page.count("data:image/svg+xml") == 5 and "<script" not in page and "note: columns that are not read" in page
    tags = []
    reader = html.parser.HTMLParser()
    reader.handle_starttag = lambda tag, _: tags.append(tag)
    reader.handle_endtag = lambda tag: tags.append(f"/{tag}")
    reader.feed(page)
    assert tags.count("table") == tags.count("/table") >= 5 and tags.count("td") == tags.count("/td")
    run(f"--fit={out}", "--predict=N=7e9,D=2e12")
    assert f"loss {one['loss']:.4f}" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_a_law_of_ones_own_is_fitted_compared_and_foretold(columns, tmp_path, capsys):
    path, out = write_csv(tmp_path / "runs.csv", columns), tmp_path / "out"
    own = ("--law=E + A/N**alpha + B/D**beta + G*lr", "--bounds=E=0:,G=-1e4:1e4", "--start=alpha=0.3|0.4,beta=0.3")
    how = ("--error=absolute", "--objective=squares", "--bootstrap=40", f"--against={LAW}")
    run(f"--csv={path}", NAMES, *own, *how, f"--out={out}", "--predict=N=1e9,D=1e10,lr=3e-4")
    said, found = capsys.readouterr().out, read(out / "fit.json")
    law = found["formula"]
    assert law["variables"] == ["N", "D", "lr"] and law["ci95"]["G"][0] < 0 < law["ci95"]["G"][1]
    assert "(columns N, D, lr; parameters E, A, alpha, B, beta, G; squares of errors of loss)" in said
    assert found["comparison"]["better"] != own[0] and "comparison: on 5 budgets" in said
    assert [row["n_held_out"] for row in law["leave_one_budget_out"]] == [7] * 5
    assert (out / "diagnostics.svg").is_file() and "columns that are not read" not in said
    assert found["predictions"][0]["loss"] == pytest.approx(load_fit(out).loss(1e9, 1e10, lr=3e-4))
    run(f"--csv={path}", NAMES, f"--law={LAW}", "--tie=alpha=beta", f"--out={out}", "--bootstrap=20")
    assert (
        read(out / "fit.json")["formula"]["tied"] == {"alpha": "beta"} and ", alpha = beta" in capsys.readouterr().out
    )


@pytest.mark.exhaustive
def test_the_published_repetitions_are_found_by_command(tmp_path, capsys):
    """The least objective known for the runs of Muennighoff et al. 2023 under their law of data seen once."""
    base = "--base=" + ",".join(f"{name}={value!r}" for name, value in MUENNIGHOFF.items())
    out = tmp_path / "out"
    asked = "--predict=N=1e9,D=2e11,U=2e10;C=1e22,U=1e10"
    run(f"--csv={REPEATED}", "--method=data_constrained", base, f"--out={out}", "--bootstrap=40", asked)
    found, said = read(out / "fit.json"), capsys.readouterr().out
    assert found["n_points"] == found["data_constrained"]["n_points"] == 182
    assert found["data_constrained"]["objective"] == pytest.approx(0.01580466, abs=2e-8)
    assert found["data_constrained"]["R_D_star"] == pytest.approx(95.4, rel=1e-2)
    assert found["data_constrained"]["R_N_star"] == pytest.approx(1.71, rel=1e-2)
    assert "153 of 182 runs repeat data" in said and "law of data seen once, given" in said
    law = load_fit(out)
    assert law.loss(1e9, 2e11, 2e10) > law.loss(1e9, 2e11)
    assert law.optimal(1e22, unique_tokens=1e10).loss > law.optimal(1e22).loss


@pytest.mark.exhaustive
def test_a_power_law_by_command(columns, tmp_path, capsys):
    loss = 1.6 + 95.18 * np.geomspace(1e18, 1e21, 35) ** -0.0941
    flops = np.geomspace(1e18, 1e21, 35)
    path = write_csv(tmp_path / "p.csv", {"params": np.sqrt(flops / 6), "tokens": np.sqrt(flops / 6), "loss": loss})
    run(f"--csv={path}", "--method=power", f"--out={tmp_path}/out", "--bootstrap=20", "--predict=C=1e23")
    found = read(tmp_path / "out" / "fit.json")
    assert found["power"]["exponent"] == pytest.approx(-0.0941, rel=1e-2)
    assert found["predictions"][0]["loss"] == pytest.approx(1.6 + 95.18 * 1e23**-0.0941, rel=1e-3)
    rising = write_csv(
        tmp_path / "r.csv", {"params": flops**0.5, "tokens": flops**0.5, "loss": 0.9 - 0.5 * (flops / 1e18) ** -0.4}
    )
    run(f"--csv={rising}", "--method=power", f"--out={tmp_path}/out", "--bootstrap=20")
    assert "warning: y levels off at a ceiling of about 0.896" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method=data_constrained",), "needs the column unique_tokens: --columns=unique_tokens=NAME"),
        (("--method=isoflop", "--columns=size=n_active"), "--columns names 'size', which is none of params"),
        (("--columns=params=none",), "has no such column"),
        (("--columns=params",), "write it as --columns="),
        (("--law=E + A/0",), "divides by zero"),
        (("--law=E + A/(D - D)**alpha",), "has no finite value at D="),
        (("--law=E + A/N^alpha",), "write **"),
        (("--law=__import__('os').system('true')*N",), "may hold names"),
        ((f"--law={LAW}", "--bounds=gamma=0:1"), "--bounds names 'gamma', which is no parameter"),
        ((f"--law={LAW}", "--bounds=E=2:1"), "the least must be below the most"),
        ((f"--law={LAW}", "--start=E=lots"), "no finite number"),
        ((f"--law={LAW}", "--tie=alpha=alpha"), "tied itself"),
        ((f"--law={LAW}", "--method=isoflop"), "leave out --method=isoflop"),
        (("--law=E + A/U**alpha",), "the points have no column unique_tokens"),
        (("--law=E + A/L**alpha",), "which is what it is to say"),
        (("--columns=tokens=D",), "lacks the column params"),
        (("--tie=alpha=beta",), "--law, which is missing"),
        (("--base=E=1",), "needs a value for"),
        (("--predict=N=",), "write it as --predict="),
        (("--method=parametric", "--predict=N=1e9"), "needs D (tokens)"),
        (("--method=parametric", "--predict=N=1e9,D=1e9,U=1e8"), "does not know of repeated data"),
        (("--method=isoflop", "--window=1"), "a factor above 1"),
        (("--method=downstream",), "divide per cents by 100"),
        (("--fit=nowhere", "--predict=C=1"), "one of --runs=GLOB, --csv=FILE and --fit=FOLDER"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(columns, arguments, words, tmp_path, capsys):
    named = () if any(argument.startswith("--columns") for argument in arguments) else (NAMES,)
    path = write_csv(tmp_path / "runs.csv", columns | {"acc": 100 * columns["acc"]})
    said = refused(capsys, f"--csv={path}", *named, "--bootstrap=20", f"--out={tmp_path}/out", *arguments)
    assert words in said and len(said) < 450


def test_a_fit_that_is_not_there_cannot_foretell(tmp_path, capsys):
    assert "holds no fit" in refused(capsys, f"--fit={tmp_path}", "--predict=C=1e20")
    assert "needs --predict" in refused(capsys, f"--fit={tmp_path}")
    assert "--law has no use with --fit" in refused(capsys, f"--fit={tmp_path}", "--predict=C=1", f"--law={LAW}")
    assert "no use with --runs" in refused(capsys, "--runs=a", f"--out={tmp_path}", "--columns=params=x")


def test_columns_are_read_by_the_names_given(columns, tmp_path):
    """A column that a known name is given to hides one that has this name; a law's own columns are read, too."""
    table = columns | {"params": np.ones(35), "unique_tokens": [""] + [1e8] * 34}
    path = write_csv(tmp_path / "runs.csv", table)
    points = read_csv(
        path, params="total", flops=None, recompute=False, columns={"params": "n_active", "tokens": "D"}, also=["lr"]
    )
    assert (points.params == columns["n_active"]).all() and (points.tokens == columns["D"]).all()
    assert list(points.extra) == ["unique_tokens", "lr"] and np.isnan(points.extra["unique_tokens"][0])
    assert points.notes[0].startswith("34 of 35 runs repeat data")
    assert points.notes[1] == "columns that are not read: acc, params of the file"
    assert set(sources.EXTRA) == {"unique_tokens", "accuracy"}
