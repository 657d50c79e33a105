"""experiments.report on run folders: what it counts, what it leaves out, what it writes, and what it refuses."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bigjax.science.report import summary as report
from bigjax.science.report.page.tables import latex
from experiments import cli
from experiments import report as command
from tests.commands import read
from tests.scaling_points import HOFFMANN, loss_of
from tests.synthetic_runs import page_data, read_table, write_run

BASE, HIGH = (2.50, 2.52, 2.51), (2.70, 2.72, 2.73)


def run(*arguments):
    argv = ["report", *map(str, arguments)]
    cli.main(command.main, doc=command.__doc__, define_flags=command.define_flags, config=False, argv=argv)


def refused(capsys, *arguments) -> str:
    """Return the sentence with which the command refuses."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    return said.err


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A baseline with three seeds, a worse setting with two, one within noise, and four that do not count."""
    root = tmp_path_factory.mktemp("report") / "runs"
    argv = ("/somewhere/experiments/train.py", "--config=configs/quickstart.py", "--config.optim.lr=3e-4")
    for seed, loss in enumerate(BASE):
        write_run(root / f"base-{seed}", loss, seed=seed, argv=argv, train={"eval_every_steps": seed})
    for seed, loss in enumerate(HIGH):
        write_run(root / f"high-{seed}", loss, seed=seed, optim={"lr": 1e-2})
    write_run(root / "wide", 2.515, model={"d_model": 512})
    write_run(root / "again", 2.50)  # after base-0 in time, before it by name
    write_run(root / "cut", None, seed=7)
    write_run(root / "nan", math.nan, seed=8)
    write_run(root / "gone", None, seed=9, last=math.nan)
    write_run(root / "guess", 6.0, seed=10)
    (root / "not a run").mkdir()
    return root


@pytest.fixture(scope="module")
def written(folders) -> Path:
    out = folders.parent / "out"
    run(f"--runs={folders}/*", f"--out={out}", f"--baseline={folders / 'base-1'}", "--question=Does lr_max matter?")
    return out


def test_runs_that_differ_in_the_seed_and_in_plumbing_are_one_setting(folders):
    found = report.build(f"{folders}/*", baseline="base-1")
    members = [{found.runs[i].name for i in setting.runs} for setting in found.settings]
    assert members == [{"again", "base-1", "base-2"}, {"wide"}, {"high-0", "high-1", "high-2"}]
    plumbing = {field.path: field.plumbing for field in found.fields}
    assert plumbing == {"model.d_model": False, "optim.lr": False, "train.seed": False, "train.eval_every_steps": True}
    assert [field.path for field in found.axes] == ["model.d_model", "optim.lr"]


def test_every_run_that_is_left_out_says_why(folders, written):
    reasons = {row["run"]: row["left out of statistics"] for row in read_table(written / "tables" / "runs.csv")}
    assert len(reasons) == 12
    assert {name for name, reason in reasons.items() if not reason} == {
        *(f"base-{seed}" for seed in (1, 2)),
        *("high-0", "high-1", "high-2", "wide", "again"),
    }
    assert "the same run as again: both have fingerprint" in reasons["base-0"]
    assert reasons["cut"] == "unfinished: no result.json yet: 20 of 40 steps"
    assert reasons["nan"] == "diverged: eval_loss is nan"
    assert reasons["gone"] == "diverged: train/loss is nan after 20 of 40 steps"
    assert "not below log 256, that of guessing" in reasons["guess"]


def test_the_ablation_table_holds_the_statistics_of_the_losses(folders, written):
    base, wide, high = read_table(written / "tables" / "ablation.csv")
    assert [row["verdict"] for row in (base, wide, high)] == ["baseline", "within noise", "worse"]
    assert high["setting"] == "optim.lr 0.001 → 0.01" and base["setting"] == "baseline"
    expected = stats.ttest_ind(HIGH, BASE, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert float(high["p"]) == pytest.approx(expected.pvalue, rel=1e-9)
    assert float(high["difference low"]) == pytest.approx(interval.low, rel=1e-9)
    assert float(high["p (Holm)"]) == pytest.approx(2 * expected.pvalue, rel=1e-9)
    mean = stats.ttest_1samp(BASE, 0).confidence_interval(0.95)
    assert [float(base[end]) for end in ("low", "high")] == pytest.approx([mean.low, mean.high], rel=1e-9)
    assert base["folders"].split() == [f"{folders}/{name}" for name in ("again", "base-1", "base-2")]


def test_every_run_has_its_folder_and_the_command_that_made_it(folders, written):
    rows = {row["run"]: row for row in read_table(written / "tables" / "runs.csv")}
    command_of = {name: row["command"] for name, row in rows.items()}
    made = "python -m experiments.train --config=configs/quickstart.py --config.optim.lr=3e-4"
    assert command_of["base-1"] == made
    assert command_of["wide"] == f"python -m bigjax train --config={folders}/wide --workdir=NEW"
    assert all(rows[name]["folder"] == str(folders / name) for name in rows)
    data = page_data(written / "index.html")
    assert [run["folder"] for run in data["runs"]] == [row["folder"] for row in rows.values()]
    assert [run["command"] for run in data["runs"]] == list(command_of.values())


def test_the_page_is_one_file_with_its_curves_by_every_clock(folders, written):
    text = (written / "index.html").read_text(encoding="utf-8")
    head = text[: text.index('<script id="data"')]
    assert "src=" not in head and "<link" not in head.replace('<link rel="icon" href="data:,">', "")
    assert 'http-equiv="refresh"' not in text
    data = page_data(written / "index.html")
    runs = {run["name"]: run for run in data["runs"]}
    one = runs["base-1"]
    assert one["curves"]["train/loss"]["step"] == list(range(1, 41)) and one["curves"]["eval/loss"]["step"][0] == 4
    assert one["curves"]["train/loss"]["time"][1] == 1.0
    assert one["tokensPerStep"] == 4 * 256 and one["flopsPerStep"] == pytest.approx(6 * 1e6 * 4 * 256)
    assert runs["cut"]["flopsPerStep"] == one["flopsPerStep"], "known from the runs of the same model"
    assert runs["gone"]["curves"]["train/loss"]["value"][-1] is None
    assert data["question"] == "Does lr_max matter?"


def test_long_curves_are_averaged_without_moving_them():
    from bigjax.science.report.page.page import _curve

    steps = np.arange(1.0, 2501)
    curve = _curve(np.stack([steps, 2 * steps, 3 - steps / 2500], axis=1), 100)
    assert len(curve["step"]) == 100
    step, time, value = (np.array(curve[name]) for name in ("step", "time", "value"))
    assert step[0] == 13 and np.allclose(time, 2 * step) and np.allclose(value, 3 - step / 2500, rtol=1e-5)


def test_figures_and_tables_are_files_of_their_own(written):
    names = {path.name for path in (written / "figures").iterdir()}
    stems = ("loss_curves", "ablation", "heat_map-model.d_model-optim.lr", "parallel_coordinates")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert (written / "figures" / "ablation.png").read_bytes().startswith(b"\x89PNG")
    text = (written / "tables" / "ablation.tex").read_text()
    assert r"optim.lr 0.001 $\to$ 0.01 & worse & 3 & 2.7167" in text and text.count(r"\\") == 4
    assert {path.stem for path in (written / "tables").iterdir()} == {"runs", "config_diff", "ablation"}


def test_latex_escapes_what_it_would_read_as_commands():
    assert latex(r"a_b & 5 % #1 {x} \y ~ ^") == (
        r"a\_b \& 5 \% \#1 \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{}"
    )


def test_laws_are_fitted_when_each_size_and_length_is_one_setting(tmp_path, capsys):
    sizes = [(size, ratio) for size in np.geomspace(1e7, 1e9, 4) for ratio in (5, 40, 320)]
    for i, (size, ratio) in enumerate(sizes):
        loss = float(loss_of(HOFFMANN, size, ratio * size))
        how = {"params": size, "tokens": ratio * size, "curve": False, "train": {"steps": 40 + i}}
        write_run(tmp_path / "runs" / f"r{i:02}", loss, **how)
    run(f"--runs={tmp_path}/runs/*", f"--out={tmp_path}/out")
    law = read(tmp_path / "out" / "fit.json")["parametric"]
    assert law["alpha"] == pytest.approx(HOFFMANN["alpha"], rel=1e-2)
    data = page_data(tmp_path / "out" / "index.html")
    assert {picture["name"] for picture in data["pictures"]} >= {"frontier", "contours", "residuals"}
    assert "| alpha" in data["fits"] and "scaling laws fitted" in capsys.readouterr().out
    write_run(tmp_path / "runs" / "twin", 3.0, **how, optim={"lr": 1e-2})
    found = report.build(f"{tmp_path}/runs/*")
    assert found.fits is None and "differ in optim.lr: a law is fitted to one setting of each" in found.fits_skipped


def test_losses_of_different_things_are_shown_and_not_compared(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", 2.5)
    write_run(tmp_path / "runs" / "b", 2.6, data={"tokenizer": "bpe:512"}, model={"vocab_size": 512})
    run(f"--runs={tmp_path}/runs/*", f"--out={tmp_path}/out")
    said = "cannot be compared: data.tokenizer is bytes in a and bpe:512 in b"
    assert said in capsys.readouterr().out
    data = page_data(tmp_path / "out" / "index.html")
    assert said in data["incomparable"] and data["settings"] == [] and len(data["runs"]) == 2
    assert not (tmp_path / "out" / "tables" / "ablation.csv").exists()


def test_one_run_is_a_report_without_comparisons(tmp_path, capsys):
    write_run(tmp_path / "runs" / "only", 2.5)
    run(f"--runs={tmp_path}/runs/*", f"--out={tmp_path}/out")
    said = capsys.readouterr().out
    assert "1 runs, 1 in the statistics, 1 settings; no scaling law: a law needs runs of at least 3 sizes" in said
    data = page_data(tmp_path / "out" / "index.html")
    assert [run["name"] for run in data["runs"]] == ["only"] and data["fitsSkipped"]
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == {"loss_curves"}


def test_runs_without_any_loss_are_shown(tmp_path):
    write_run(tmp_path / "runs" / "a", math.nan)
    write_run(tmp_path / "runs" / "b", None, curve=False, seed=1)
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "config.json").write_text("{")
    run(f"--runs={tmp_path}/runs/*", f"--out={tmp_path}/out")
    states = {row["run"]: row["state"] for row in read_table(tmp_path / "out" / "tables" / "runs.csv")}
    assert states == {"a": "diverged", "b": "unfinished", "c": "unreadable"}


def test_a_config_that_cannot_be_read_changes_nothing_for_the_others(tmp_path):
    """Two fields drawn at random are two axes, and no value is that of a run of which none is known."""
    for i, (lr, decay) in enumerate([(1e-3, 0.2), (2e-3, 0.1), (3e-3, 0.3), (4e-3, 0.0)]):
        write_run(tmp_path / "runs" / f"a{i}", 2.5 + lr, optim={"lr": lr, "weight_decay": decay})
    (write_run(tmp_path / "runs" / "damaged", 2.4) / "config.json").write_text("")
    run(f"--runs={tmp_path}/runs/*", f"--out={tmp_path}/out")
    fields = {row["field"]: row for row in read_table(tmp_path / "out" / "tables" / "config_diff.csv")}
    assert fields["optim.lr"]["values"] == "0.001, 0.002, 0.003, 0.004" and fields["optim.lr"]["count"] == "4"
    assert fields["optim.weight_decay"]["note"] == ""
    assert (tmp_path / "out" / "figures" / "heat_map-optim.lr-optim.weight_decay.png").is_file()


def test_the_question_is_the_docstring_of_the_config_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("why.py").write_text('"""Does it help?\n\nMore.\n"""\n')
    for name in ("a", "b"):
        write_run(tmp_path / name, 2.5, seed=ord(name), argv=("/x/experiments/train.py", "--config=why.py:d4"))
    found = report.build("[ab]")
    assert (found.question, found.asked) == ("Does it help?\n\nMore.", "why.py")
    Path("sweep.json").write_text('{"config": "sweep.py"}')
    Path("sweep.py").write_text('"""How far?"""\n')
    assert report.build("[ab]").question == "How far?"


def test_a_sweeps_reason_for_an_early_end_is_shown(tmp_path):
    write_run(tmp_path / "a", None)
    (tmp_path / "a" / "outcome.json").write_text('{"state": "pruned", "reason": "worse than the median"}')
    (run,) = report.build(f"{tmp_path}/*").runs
    assert (run.state, run.reason) == ("unfinished", "pruned after 20 of 40 steps: worse than the median")


def test_watching_writes_until_no_run_goes_on(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "runs" / "a", 2.5)
    write_run(tmp_path / "runs" / "b", None, seed=1)
    page, looks = tmp_path / "out" / "index.html", []

    def wait(seconds):
        looks.append((seconds, 'http-equiv="refresh" content="7"' in page.read_text(encoding="utf-8")))
        if len(looks) == 2:
            write_run(tmp_path / "runs" / "b", 2.6, seed=1)

    monkeypatch.setattr(command.time, "sleep", wait)
    run(f"--runs={tmp_path}/runs/*", f"--out={tmp_path}/out", "--watch", "--watch_s=7")
    assert looks == [(7, True)] * 3
    said = capsys.readouterr().out.splitlines()
    assert ["1 in the statistics" in line for line in said] == [True, False, False]
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out=out",), "--runs is missing"),
        (("--runs=none/*",), "--out is missing"),
        (("--runs=none/*", "--out=out"), "--runs=none/* matches no folder of a run"),
        (("--runs=", "--out=out"), "--runs= is not a pattern of paths"),
        (("--runs={}/*", "--out=out", "--baseline=best"), "--baseline=best is none of the runs: again, base-0"),
        (("--runs={}/*", "--out=out", "--baseline=cut"), "--baseline=cut has no loss to compare with"),
        (("--runs={}/*", "--out={}/wide/config.json"), "cannot be written"),
    ],
)
def test_what_cannot_be_reported_is_refused(arguments, words, folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *(argument.format(folders) for argument in arguments))
    assert not Path("out").exists()


def test_a_missing_plotly_is_said_in_one_sentence(folders, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    said = refused(capsys, f"--runs={folders}/*", f"--out={tmp_path}/out")
    assert said == "error: a report needs plotly: pip install 'bigjax[report]'\n"
    assert not (tmp_path / "out").exists()


def test_neither_the_library_nor_the_command_imports_jax():
    program = "import sys, experiments.report, bigjax.science.report.page.folder; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_fields_move_together_only_in_order():
    """Widths and their heads do; two fields drawn at random have one value of each other, and do not."""
    from bigjax.science.report.summary import _move_together

    assert _move_together([64, 128, 64], [2, 4, 2]) and _move_together([1, 2, 3], [0.3, 0.2, 0.1])
    assert _move_together(["a", "b"], [1, 2])
    assert not _move_together([1, 2, 3], [5, 9, 7]) and not _move_together([1, 1, 2], [1, 2, 3])


def test_fields_drawn_from_a_range_are_points_and_not_cells(tmp_path):
    """A random search: no value comes twice, and the picture has one mark a setting."""
    for i, lr in enumerate(np.geomspace(1e-4, 1e-2, 14)):
        changes = {"optim": {"lr": float(lr), "weight_decay": 0.01 * ((5 * i) % 14)}}
        write_run(tmp_path / "runs" / f"r{i}", 2.5 + 0.01 * i, **changes)
    run(f"--runs={tmp_path}/runs/*", f"--out={tmp_path}/out")
    data = page_data(tmp_path / "out" / "index.html")
    assert data["axes"] == ["optim.lr", "optim.weight_decay"]
    assert {setting["verdict"] for setting in data["settings"]} == {"baseline", "no noise floor"}
    svg = (tmp_path / "out" / "figures" / "heat_map-optim.lr-optim.weight_decay.svg").read_text()
    marks = svg.partition('id="PathCollection_1"')[2].partition("</g>\n   </g>")[0]
    assert marks.count("<use ") == 14
