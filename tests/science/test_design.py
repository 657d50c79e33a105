"""Runs chosen for a target, and predictions that are frozen before it and judged after."""

import json
import os

import numpy as np
import pytest

from bigjax.run.json_files import write_json
from bigjax.science.laws.design import design_for
from bigjax.science.laws.formula.law import CHINCHILLA, with_doubt
from bigjax.science.scaling_laws import FitError, Law
from experiments import cli, design
from tests.commands import read
from tests.scaling_points import HOFFMANN, loss_of
from tests.science.test_fit_command import run_folder

PRIOR = "--prior=" + ",".join(f"{name}={value}" for name, value in HOFFMANN.items())
TARGET = "--target=N=7e9,D=2e11"


def run(*arguments):
    names = {"doc": design.__doc__, "define_flags": design.define_flags, "config": False}
    cli.main(design.main, **names, argv=["design", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_the_promised_interval_is_that_of_a_linear_gaussian_model():
    """The covariance after runs with Jacobian J and noise s is (V⁻¹ + J'J / s²)⁻¹, in log A and the like."""
    law = with_doubt(Law.chinchilla(**HOFFMANN), 0.1, 0.004, np.random.default_rng(1))
    found = design_for(law, 7e9, 2e11, 1e21)
    assert sum(each.C for each in found.runs) <= 1e21 * (1 + 1e-9)
    assert all(pytest.approx(6 * each.N * each.D) == each.C for each in found.runs)
    names, values = list(HOFFMANN), np.array(list(HOFFMANN.values()))

    def slopes(size, tokens):
        """Central differences of log L in the logarithms of the constants."""
        ends = []
        for sign in (1, -1):
            moved = values * np.exp(sign * 1e-5 * np.eye(5))
            ends.append([np.log(loss_of(dict(zip(names, row, strict=True)), size, tokens)) for row in moved])
        return (np.array(ends[0]) - ends[1]) / 2e-5

    order = [list(law.parameters).index(name) for name in names]
    before = np.cov(np.log(law.replicates[:, order]).T)
    jacobian = np.array([slopes(each.N, each.D) for each in found.runs])
    noise = np.sqrt(np.mean(law.noise**2))
    after = np.linalg.inv(np.linalg.inv(before) + jacobian.T @ jacobian / noise**2)
    target = slopes(7e9, 2e11)
    for matrix, half in ((before, found.half_before), (after, found.half_after)):
        assert half == pytest.approx(1.96 * np.sqrt(target @ matrix @ target), rel=1e-4)
    assert found.half_after < 0.2 * found.half_before
    with pytest.raises(FitError, match=r"below the 8\.4e"):
        design_for(law, 7e9, 2e11, 1e30)
    with pytest.raises(FitError, match="with --prior_sd"):
        design_for(Law.chinchilla(**HOFFMANN), 7e9, 2e11, 1e21)
    with pytest.raises(FitError, match="of N and D"):
        design_for(Law.of("E + A/C**alpha", E=1.0, A=1.0, alpha=0.1), 7e9, 2e11, 1e21)


def test_a_prediction_is_frozen_once_before_its_run_and_judged_after(tmp_path, capsys):
    out, target = tmp_path / "d" / "a", tmp_path / "target"
    how = (PRIOR, TARGET, f"--run={target}", "--prior_sd=0.01")
    run(*how, "--budget=1e21", f"--out={out}")
    said = capsys.readouterr().out
    frozen, chosen = read(out / "prediction.json"), read(out / "design.json")
    assert frozen["loss"] == pytest.approx(loss_of(HOFFMANN, 7e9, 2e11)) and frozen["digest"][:12] in said
    assert chosen["half_after"] < chosen["half_before"] and len(chosen["runs"]) == said.count("run N=")
    assert frozen["law"].replace(" ", "") == CHINCHILLA.replace(" ", "")
    judged = f"--judge={tmp_path}/d/*/prediction.json"
    run(judged)
    assert "a/prediction.json: open" in capsys.readouterr().out
    assert "is frozen already" in refused(capsys, *how, f"--out={out}")
    run_folder(target, 0, 7e9, 2e11)  # with the loss of the law
    os.utime(target / "config.json", (2e9, 2e9))
    run(*how[:2], f"--run={tmp_path}/other", "--prior_sd=0.01", f"--out={tmp_path}/d/b")
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / "result.json", {"eval_loss": 9.0})
    capsys.readouterr()
    run(judged)
    said = capsys.readouterr().out
    assert "a/prediction.json: held" in said and "b/prediction.json: failed" in said
    assert "1 of 2 predictions held" in said
    assert "has begun" in refused(capsys, *how, f"--out={tmp_path}/d/c")
    os.utime(target / "config.json", (1, 1))
    assert "had begun before" in refused(capsys, judged)
    (out / "prediction.json").write_text(json.dumps(frozen | {"ci95": [0.0, 9.0]}))
    assert "was changed after it was frozen" in refused(capsys, judged)
    (out / "prediction.json").write_text("{")
    assert "damaged" in refused(capsys, judged)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of --fit=FOLDER, --prior=NUMBERS and --judge=GLOB"),
        ((PRIOR,), "--target is missing"),
        ((PRIOR, "--target=C=1e22"), "is not one run of N and D"),
        ((PRIOR, TARGET), "--out is missing"),
        ((PRIOR, TARGET, "--out=x"), "give one of them, or both"),
        ((PRIOR, TARGET, "--out=x", "--budget=-1"), "must be above 0"),
        (("--prior=E=1", TARGET), "needs a value for"),
        (("--fit=nowhere", TARGET), "holds no fit"),
        (("--judge=none*",), "matches no file"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())
