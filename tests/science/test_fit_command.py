"""experiments.fit on CSV files and run folders: what it writes, and one sentence for what cannot be fitted."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

from bigjax.config import Config, replace
from bigjax.config.strict import fingerprint, to_dict
from bigjax.run.json_files import write_json
from bigjax.science.laws import plots as fits_plots
from bigjax.science.laws.study import study
from bigjax.science.scaling_laws import fit_isoflop, read_csv, read_runs
from experiments import cli, fit
from tests.commands import Commands, read, shared_cache
from tests.scaling_points import HOFFMANN, best_size, isoflop_runs, loss_of

PICTURES = ("frontier", "isoflop", "contours", "residuals")


def write_csv(path, columns):
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [columns.keys(), *rows]) + "\n")
    return path


def run(*arguments):
    cli.main(fit.main, doc=fit.__doc__, define_flags=fit.define_flags, config=False, argv=["fit", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    """Return the sentence with which the command refuses."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    return said.err


@pytest.fixture(scope="module")
def points():
    params, tokens, loss = isoflop_runs(HOFFMANN, noise=0.003, seed=0)
    return {"params": params, "tokens": tokens, "loss": loss}


@pytest.fixture(scope="module")
def fitted(points, tmp_path_factory):
    """What the command says and writes about 35 runs, one that diverged and one whose loss is NaN."""
    folder = tmp_path_factory.mktemp("fit")
    bad = {"params": [1e9, 1e9], "tokens": [1e10, 1e10], "loss": [9.5, "nan"], "diverged": ["true", ""]}
    columns = {name: [*values, *bad[name]] for name, values in points.items()}
    columns |= {"seed": [0] * 37, "diverged": [0] * 35 + bad["diverged"], "comment": ["x"] * 37}
    path = write_csv(folder / "runs.csv", columns)
    commands = Commands(shared_cache(tmp_path_factory))
    options = ("--optimal_at=5.76e23", "--next_budget=1e22", "--bootstrap=60")
    said = commands.run("experiments.fit", f"--csv={path}", f"--out={folder / 'out'}", *options)
    assert said.stderr == ""
    return said.stdout, read(folder / "out" / "fit.json"), folder / "out"


def test_the_law_is_found_with_its_intervals(fitted):
    _, found, _ = fitted
    law = found["parametric"]
    for name, value in HOFFMANN.items():
        low, high = law["ci95"][name]
        assert low < law[name] < high
        assert low <= value <= high, name
    assert law["n_points"] == 35 and law["converged"] and 0 < law["objective"] < 1e-3
    for name in ("N_coefficient", "N_exponent", "D_coefficient", "D_exponent"):
        assert found["isoflop"]["ci95"][name][0] < found["isoflop"][name] < found["isoflop"]["ci95"][name][1]
    assert "envelope" not in found and "3 sizes" in found["skipped"]["envelope"]


def test_the_optimum_is_at_the_flops_asked_for(fitted):
    _, found, _ = fitted
    for method in ("parametric", "isoflop"):
        (best,) = found["optimal"][method]
        assert best["C"] == 5.76e23
        assert 6 * best["N"] * best["D"] == pytest.approx(5.76e23, rel=1e-3)
        assert best["ci95"]["N"][0] < best["N"] < best["ci95"]["N"][1]
        assert best["N"] == pytest.approx(best_size(HOFFMANN, 5.76e23), rel=0.25)
    assert sum(run["C"] for run in found["next_runs"]["runs"]) <= 1e22 * (1 + 1e-9)


def test_what_was_left_out_held_out_and_counted_is_said(fitted):
    said, found, _ = fitted
    assert found["n_points"] == 35
    reasons = [(row["point"], row["reason"]) for row in found["excluded"]]
    assert reasons == [("runs.csv:37", "diverged"), ("runs.csv:38", "loss is nan, not a finite number")]
    assert "excluded runs.csv:37: diverged" in said
    assert found["holdout"]["parametric"]["n_held_out"] == 7
    assert found["holdout"]["isoflop"]["predicted_N"] == pytest.approx(found["holdout"]["isoflop"]["N"], rel=0.3)
    assert found["conventions"]["params"] == "total" and found["conventions"]["flops"] == "6ND"
    assert found["conventions"]["recompute"] is False and "counted in N" in found["conventions"]["embeddings"]


def test_every_picture_is_there_in_both_formats(fitted):
    _, _, out = fitted
    for name in PICTURES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert xml.etree.ElementTree.parse(out / f"{name}.svg").getroot().tag.endswith("svg")
    assert (out / "fit.md").read_text().startswith("35 points")
    assert [fits_plots._formula(value, 4) for value in (406.4, 94190.0, 1.5e-8)] == [
        "406.4",
        r"9.419 \cdot 10^{4}",
        r"1.5 \cdot 10^{-8}",
    ]


def run_folder(path, index, size, tokens, *, curve=True, finished=True, **changes):
    """Write what a finished run leaves, with a loss of Hoffmann et al.'s law."""
    cfg = replace(Config(), train={"seed": index, "steps": 100})
    config = to_dict(cfg)
    for name, value in changes.items():
        section, _, field = name.partition("_")
        config[section][field] = value
    path.mkdir(parents=True)
    write_json(path / "config.json", {"config": config, "fingerprint": fingerprint(cfg)})
    steps = np.arange(5, 101, 5)
    rows = [{"step": int(s), "time_s": 1.0, "eval/loss": loss_of(HOFFMANN, size, tokens * s / 100)} for s in steps]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if curve))
    if finished:
        result = {"fingerprint": fingerprint(cfg), "steps": 100, "tokens": tokens, "params_total": size}
        result |= {"params_non_embedding": 0.8 * size, "flops": 7 * size * tokens}
        write_json(path / "result.json", result | {"eval_loss": loss_of(HOFFMANN, size, tokens)})


def test_runs_are_read_with_their_curves_and_unfinished_ones_listed(tmp_path, capsys):
    sizes = np.geomspace(3e7, 3e9, 12)
    for index, size in enumerate(sizes):
        run_folder(tmp_path / "runs" / f"r{index:02}", index, size, 300 * size)
    run_folder(tmp_path / "runs" / "r98", 98, 1e8, 1e10, finished=False)
    run_folder(tmp_path / "runs" / "r99", 0, sizes[0], 300 * sizes[0])
    (tmp_path / "runs" / "other").mkdir()
    run(f"--runs={tmp_path}/runs/*", "--method=envelope", "--bootstrap=40", f"--out={tmp_path}/out", "--flops=recorded")
    found = read(tmp_path / "out" / "fit.json")
    assert found["n_points"] == 12
    assert [row["reason"].partition(":")[0] for row in found["excluded"]] == [
        "not finished",
        f"the same run as {tmp_path}/runs/r00",
    ]
    exponent = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])
    assert found["envelope"]["N_exponent"] == pytest.approx(exponent, abs=0.06)
    assert found["conventions"]["tokenizer"] == "bytes" and found["conventions"]["vocab_size"] == 256
    assert found["conventions"]["flop_model"] == "C = 7 N^1 D"
    assert "r98" in capsys.readouterr().out
    points = read_runs(f"{tmp_path}/runs/*", params="total", flops=None, recompute=False)
    assert points.notes == ("FLOPs are 6ND; the runs recorded 1.17 to 1.17 times 6ND, which --flops=recorded takes",)


def test_the_parameters_counted_are_those_asked_for(tmp_path):
    for index, (size, ratio) in enumerate([(s, r) for s in np.geomspace(1e8, 1e9, 4) for r in (10, 40, 160)]):
        run_folder(tmp_path / f"r{index}", index, size, ratio * size)
    for counted, factor in (("total", 1.0), ("non_embedding", 0.8)):
        run(
            f"--runs={tmp_path}/r*",
            "--method=parametric",
            f"--params={counted}",
            f"--out={tmp_path}/out",
            "--bootstrap=20",
        )
        found = read(tmp_path / "out" / "fit.json")
        assert found["parametric"]["A"] == pytest.approx(HOFFMANN["A"] * factor ** HOFFMANN["alpha"], rel=1e-2)
        assert found["conventions"]["params"] == counted


def test_runs_that_cannot_be_compared_are_refused(tmp_path, capsys):
    run_folder(tmp_path / "a", 0, 1e8, 1e10)
    run_folder(tmp_path / "b", 1, 2e8, 1e10, data_tokenizer="bpe:512")
    said = refused(capsys, f"--runs={tmp_path}/*", f"--out={tmp_path}/out")
    assert "cannot be compared: data.tokenizer is 'bytes'" in said and "'bpe:512'" in said
    said = refused(capsys, f"--runs={tmp_path}/a", f"--out={tmp_path}/out", "--method=parametric")
    assert "1 distinct point is too few for the parametric law, which has 5 parameters" in said
    assert "matches no folder of a run" in refused(capsys, f"--runs={tmp_path}/none*", f"--out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": None}, "lacks the column loss"),
        ({"loss": None, "tokens": None}, "lacks the columns tokens, loss"),
        ({"loss": [math.nan] * 35}, "no point is left to fit out of 35"),
        ({"loss": [-2.0] * 35}, "runs.csv:2 has loss=-2, which must be above 0"),
        ({"params": ["many"] * 35}, "runs.csv:2 has params=many, which is not a number"),
        ({"diverged": ["perhaps"] * 35}, "runs.csv:2 has diverged=perhaps"),
        ({"weight": [-1] * 35}, "weight=-1"),
        ({"loss": ["2,500.5"] * 35}, "runs.csv:2 has 4 cells under 3 columns"),  # a thousands separator, not quoted
        ({"loss ": [9.9] * 35}, "has the column loss 2 times"),
        ({"loss": [2.5] * 34 + ["\n\nmany"]}, "runs.csv:38 has params=many"),
    ],
)
def test_a_csv_that_cannot_be_fitted_is_refused(change, words, points, tmp_path, capsys):
    columns = {name: values for name, values in (points | change).items() if values is not None}
    path = write_csv(tmp_path / "runs.csv", columns)
    assert words in refused(capsys, f"--csv={path}", f"--out={tmp_path}/out")


def test_a_csv_as_other_programs_write_it_is_read_the_same(points, tmp_path):
    """Semicolons, tabs, a byte order mark, other line ends, other orders, quotes and blank lines change nothing."""

    def read_back(name, text):
        (tmp_path / name).write_bytes(text.encode())
        return read_csv(tmp_path / name, params="total", flops="6ND", recompute=False)

    text = write_csv(tmp_path / "plain.csv", points | {"diverged": [0.0, 1.0, ""] * 11 + [0, 1]}).read_text()
    plain = read_back("plain.csv", text)
    assert len(plain) == 23 and plain.excluded[0].point == "plain.csv:3"
    quoted = "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines())
    for name, other in {
        "semicolons": text.replace(",", ";"),
        "tabs": text.replace(",", "\t"),
        "excel": "\ufeff" + text.replace("\n", "\r\n"),
        "old_mac": text.replace("\n", "\r"),
        "quoted": quoted,
        "turned": "\n".join(",".join(reversed(line.split(","))) for line in text.splitlines()),
        "spaced": text.replace(",", " , ") + " , , , \n,,,,,\n",
    }.items():
        found = read_back(name, other)
        for column in ("params", "tokens", "loss"):
            assert (getattr(found, column) == getattr(plain, column)).all(), name
    numbered = read_back("blank_lines", text.replace("\n", "\n\n"))
    assert numbered.excluded[0].point == "blank_lines:5"  # as an editor counts


def test_identical_budgets_have_no_isoflop_frontier(points, tmp_path, capsys):
    path = write_csv(tmp_path / "runs.csv", {name: values[:7] for name, values in points.items()})
    said = refused(capsys, f"--csv={path}", "--method=isoflop", f"--out={tmp_path}/out")
    assert "at least 2 compute budgets" in said


def test_what_the_law_does_not_describe_is_said_and_not_a_crash(points, tmp_path):
    """Losses that rise with compute, and six runs of one budget: a fit is there, with its doubts."""
    path = write_csv(tmp_path / "rising.csv", points | {"loss": 6 - points["loss"]})
    run(f"--csv={path}", f"--out={tmp_path}/rising", "--bootstrap=30", "--method=parametric")
    found = read(tmp_path / "rising" / "fit.json")
    assert found["parametric"]["warnings"]
    path = write_csv(tmp_path / "six.csv", {name: values[:6] for name, values in points.items()})
    run(f"--csv={path}", f"--out={tmp_path}/six", "--bootstrap=30")
    found = read(tmp_path / "six" / "fit.json")
    assert "same compute budget" in found["skipped"]["holdout.parametric"]
    assert found["parametric"]["leave_one_budget_out"] == []


@pytest.mark.exhaustive
def test_an_interval_without_an_end_or_without_noise_to_go_by_says_why(points, tmp_path, capsys):
    """Noise of 3 % hides the minima of these curves; seven runs leave five to predict two from."""
    params, tokens, loss = isoflop_runs(HOFFMANN, width=3, noise=0.03, seed=5)
    path = write_csv(tmp_path / "noisy.csv", {"params": params, "tokens": tokens, "loss": loss})
    run(f"--csv={path}", f"--out={tmp_path}/noisy", "--bootstrap=100", "--optimal_at=1e22")
    found, said = read(tmp_path / "noisy" / "fit.json"), capsys.readouterr().out
    assert found["isoflop"]["ci95"]["N_exponent"] == ["-Infinity", "Infinity"]
    assert found["optimal"]["isoflop"][0]["ci95"]["N"] == [0.0, "Infinity"]
    assert "bootstrap replicates have a budget whose curve has no minimum" in found["isoflop"]["warnings"][0]
    assert "[-inf, inf]" in said and found["isoflop"]["warnings"][0] in said
    assert all((tmp_path / "noisy" / f"{name}.png").is_file() for name in PICTURES)
    seven = [0, 1, 2, 3, 4, 7, 8]
    path = write_csv(tmp_path / "seven.csv", {name: values[seven] for name, values in points.items()})
    run(f"--csv={path}", f"--out={tmp_path}/seven", "--bootstrap=30", "--method=parametric")
    held = read(tmp_path / "seven" / "fit.json")["holdout"]["parametric"]
    assert held["inside_ci95"] is None and [row["ci95"] for row in held["points"]] == [None, None]
    assert "no intervals, since it was fitted to no more points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of --runs=GLOB, --csv=FILE and --fit=FOLDER"),
        (("--csv=a", "--runs=b"), "one of --runs=GLOB, --csv=FILE and --fit=FOLDER"),
        (("--csv=a",), "--out is missing"),
        (("--csv=none.csv", "--out=out"), "none.csv cannot be read"),
        (("--csv=a", "--out=out", "--optimal_at=lots"), "--optimal_at=lots"),
        (("--csv=a", "--out=out", "--method=guess"), "method"),
    ],
)
def test_wrong_flags_are_refused(arguments, words, capsys):
    assert words in refused(capsys, *arguments)


def columns_of(points, **more):
    return {name: list(values) for name, values in (points | more).items()}


@pytest.mark.parametrize("header", ["flops", "FLOPs", " Flops "])
def test_flops_that_a_csv_holds_are_those_that_count(points, header, tmp_path, capsys):
    """Budgets of a power of 6ND: the exponent of the frontier in them is by the closed form that of 6ND over the power.

    With C = 6ND the minima are N = G (C/6)^a. Where what is recorded is C^1.25, they are a power a / 1.25 of it.
    """
    flops = (6 * points["params"] * points["tokens"]) ** 1.25
    path = write_csv(tmp_path / "runs.csv", columns_of(points, **{header: flops, "comment": ["x"] * 35}))
    found = {}
    for choice in ("", "recorded", "6ND"):
        counted = {"params": "total", "flops": choice or None, "recompute": False}
        found[choice] = fit_isoflop(points_of := read_csv(path, **counted), bootstrap=0)
        assert points_of.notes[-1] == "columns that are not read: comment"
        said = " ".join(points_of.notes)
        assert ("FLOPs are those of the column flops, 3.16e+04 to 1.78e+05 times 6ND" in said) == (choice == "")
        assert ("the column flops is not used" in said) == (choice == "6ND")
        assert points_of.conventions.flops == (choice or "recorded")
    exponents = [found[choice].parameters["N_exponent"] for choice in ("", "recorded", "6ND")]
    assert exponents[0] == exponents[1] == pytest.approx(exponents[2] / 1.25, rel=1e-9)
    if header != "flops":  # the command does no more with another spelling
        return
    run(f"--csv={path}", "--method=isoflop", "--bootstrap=20", f"--out={tmp_path}/out")
    said, written = capsys.readouterr().out, read(tmp_path / "out" / "fit.json")
    assert len(written["notes"]) == 3 and all(f"note: {note}" in said for note in written["notes"])
    assert written["isoflop"]["N_exponent"] == pytest.approx(exponents[0])


def test_recorded_flops_that_follow_neither_size_nor_tokens_are_named(points, tmp_path):
    """Every other run counts half: a power of N times D is off by the root of 2 either way, at the least."""
    flops = 6 * points["params"] * points["tokens"] * np.tile([1, 0.5], 18)[:35]
    path = write_csv(tmp_path / "runs.csv", columns_of(points, flops=flops))
    found = study(read_csv(path, params="total", flops=None, recompute=False), ("parametric",), bootstrap=20)
    assert "optima take FLOPs as C = " in found.points.notes[-1] and "up to 4" in found.points.notes[-1]
    exact = read_csv(path, params="total", flops="6ND", recompute=False)
    assert len(study(exact, ("parametric",), bootstrap=20).points.notes) == 1


def test_flops_that_only_some_rows_of_a_csv_hold_are_no_reason_to_drop_the_others(points, tmp_path, capsys):
    """A row without a loss, or one that diverged, needs none: that is how a sweep writes a run that has not ended."""

    def read_back(columns, flops=None):
        return read_csv(write_csv(tmp_path / "runs.csv", columns), params="total", flops=flops, recompute=False)

    flops = [6 * n * d for n, d in zip(points["params"], points["tokens"], strict=True)]
    half = columns_of(points, flops=[*flops[:20], *[""] * 15])
    said = refused(capsys, f"--csv={write_csv(tmp_path / 'half.csv', half)}", f"--out={tmp_path}/out")
    assert "half.csv has flops in 20 of 35 rows" in said and "--flops=6ND" in said
    assert len(read_back(half, "6ND")) == 35
    assert read_back(columns_of(points, flops=[""] * 35)).conventions.flops == "6ND"
    ended = columns_of(points, flops=[*flops[:33], "", ""], diverged=[0] * 34 + [1])
    ended["loss"][33] = ""
    found = read_back(ended)
    assert (len(found), found.conventions.flops) == (33, "recorded")
    found = read_back(columns_of(points, **{f"{index} {'x' * 10_000}": [1] * 35 for index in range(20)}))
    assert "and 15 more" in found.notes[0] and len(found.notes[0]) < 300


def test_flops_as_recorded_need_their_column(points, tmp_path, capsys):
    path = write_csv(tmp_path / "runs.csv", points)
    assert "lacks the column flops" in refused(capsys, f"--csv={path}", "--flops=recorded", f"--out={tmp_path}/out")


@pytest.mark.filterwarnings("error")
def test_flops_that_do_not_grow_with_size_are_refused(points, tmp_path, capsys):
    """The same FLOPs for every run, as from a column that holds something else: no optimum follows from them."""
    path = write_csv(tmp_path / "runs.csv", points | {"flops": [1e19] * 35})
    said = refused(capsys, f"--csv={path}", "--flops=recorded", f"--out={tmp_path}/out")
    assert "the recorded flops do not grow with size" in said and not (tmp_path / "out").exists()
    path = write_csv(tmp_path / "huge.csv", points | {"params": [1e308] * 35})
    assert "flops is inf" in refused(capsys, f"--csv={path}", f"--out={tmp_path}/out")


def test_neither_the_library_nor_the_command_imports_jax():
    modules = "experiments.fit, bigjax.science.scaling_laws, bigjax.science.laws.plots"
    program = f"import sys, {modules}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
