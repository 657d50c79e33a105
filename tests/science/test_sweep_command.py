"""`experiments.sweep` as a user types it, on tiny real runs."""

import csv
import shutil
import signal
import sys
import threading

import pytest

from bigjax.science.scaling_laws import read_csv, read_runs
from experiments import cli
from experiments.sweep import __main__ as sweep
from tests.commands import ROOT, TINY, Commands, read, rows, shared_cache

SWEEP = "experiments.sweep"

FILE = """
from bigjax.science.sweeps import grid
from configs.quickstart import get_config


def sweep(add):
    add(grid({"model.d_model": [16, 32]}))
    add(**{"optim.name": "sgd", "optim.lr": 1e30})
    add(**{"data.sources": ("text:/nowhere/*.txt",)})
"""

COUNTED = {"params": "total", "flops": "6ND", "recompute": False}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The command line of a sweep of which two points finish, one diverges and one fails, without --workdir."""
    file = tmp_path_factory.mktemp("configs") / "mixed.py"
    file.write_text(FILE)
    return (f"--config={file}", *TINY[1:])


@pytest.fixture(scope="module")
def swept(commands, arguments, tmp_path_factory):
    """The folder of that sweep, run in processes of their own, and what the command said."""
    folder = tmp_path_factory.mktemp("sweeps") / "mixed"
    return folder, commands.run(SWEEP, *arguments, f"--workdir={folder}", "--processes=2", code=1)


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command in this process; return exit status, stdout and stderr."""
    monkeypatch.chdir(ROOT)

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sweep", *map(str, arguments)])
        status = 0
        try:
            cli.main(sweep.main, doc=sweep.__doc__, define_flags=sweep.define_flags)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


def test_one_bad_point_stops_no_other_and_all_are_labelled(swept):
    folder, done = swept
    first, second, diverged, failed = read(folder / "sweep.json")["points"]
    assert [row["state"] for row in (first, second, diverged, failed)] == ["finished", "finished", "diverged", "failed"]
    assert [row["values"]["model.d_model"] for row in (first, second)] == [16, 32]
    assert "step 2 is not finite" in diverged["reason"]
    assert "/nowhere/*.txt" in failed["reason"]
    for row in (first, second):
        result = read(folder / row["run"] / "result.json")
        assert row["loss"] == result["eval_loss"]
        assert row["fingerprint"] == result["fingerprint"] == read(folder / row["run"] / "config.json")["fingerprint"]
        assert (row["params"], row["tokens"], row["flops"]) == tuple(
            result[name] for name in ("params_total", "tokens", "flops")
        )
    assert "4/4" in done.stderr
    assert ["1", "d_model=16", "finished", f"{first['loss']:.4f}"] in [
        line.split() for line in done.stdout.splitlines()
    ]


def test_fits_read_the_runs_and_the_table_and_leave_out_what_diverged_or_failed(swept):
    folder, _ = swept
    points = read_runs(f"{folder}/*", **COUNTED)
    assert len(points) == 2
    reasons = sorted(found.reason for found in points.excluded)
    assert reasons[0].startswith("diverged: step 2 is not finite")
    assert reasons[1].startswith("failed: ")
    with (folder / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["state"] for row in table] == ["finished", "finished", "diverged", "failed"]
    again = read_csv(folder / "sweep.csv", **COUNTED)
    assert (again.loss == points.loss).all()
    assert sorted(found.reason for found in again.excluded)[0] == "diverged"


def test_the_same_command_again_tries_only_what_failed(commands, arguments, swept, tmp_path):
    folder = shutil.copytree(swept[0], tmp_path / "moved")
    (run,) = folder.glob("d_model=16*")
    run.rename(folder / "renamed by hand")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    said = commands.run(SWEEP, *arguments, f"--workdir={folder}", "--runner=inline", code=1).stderr
    assert "4 points in" in said
    assert ", 1 to run" in said
    assert said.count("failed: ") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")} == before
    assert read(folder / "sweep.json")["points"][0]["run"] == "renamed by hand"


def test_what_was_cut_off_goes_on_and_ends_the_same(commands, arguments, swept, call, tmp_path):
    folder = shutil.copytree(swept[0], tmp_path / "cut")
    (run,) = folder.glob("d_model=32*")
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / "8")
    assert "to be continued, it is at step" in call(*arguments, f"--workdir={folder}", "--explain")[1].splitlines()[1]
    commands.run(SWEEP, *arguments, f"--workdir={folder}", code=1)
    (before,) = swept[0].glob("d_model=32*")
    assert rows(run) == rows(before)
    assert read(run / "result.json")["eval_loss"] == read(before / "result.json")["eval_loss"]
    assert read(folder / "sweep.json")["points"] == read(swept[0] / "sweep.json")["points"]


@pytest.mark.exhaustive
def test_a_signal_ends_all_with_checkpoints_and_the_same_command_goes_on(commands, tmp_path):
    file, folder = tmp_path / "two.py", tmp_path / "sweep"
    file.write_text(FILE.partition("    add(**{")[0])
    long = (f"--config={file}", *TINY[1:], "--config.train.steps=100000")
    process = commands.start(SWEEP, *long, f"--workdir={folder}", "--processes=2")
    watched = process.stderr
    assert "2 to run" in watched.readline()
    while len([path for path in folder.glob("*/metrics.jsonl") if path.stat().st_size]) < 2:
        assert process.poll() is None
        threading.Event().wait(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert [row["state"] for row in read(folder / "sweep.json")["points"]] == ["cut off"] * 2
    for run in folder.glob("d_model*"):
        newest = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
        assert newest == rows(run)[-1]["step"]


def test_explain_says_what_is_new_and_that_plumbing_is_not(call, arguments, swept):
    place, changed = f"--workdir={swept[0]}", "--config.log.every_steps=2"
    _, said, _ = call(*arguments, "--config.train.seed=3", changed, place, "--explain")
    assert said.splitlines()[0].endswith("new: train.seed 0 → 3")
    _, said, _ = call(*arguments, changed, place, "--explain")
    first, _, third, fourth = said.splitlines()
    assert first.endswith("; plumbing log.every_steps 1 → 2 changes nothing")
    assert "diverged: step 2 is not finite" in third
    assert "to be run again, it failed: " in fourth


def test_mistakes_end_before_anything_is_written(call, arguments, tmp_path):
    file, place = tmp_path / "typo.py", f"--workdir={tmp_path / 'sweep'}"
    file.write_text(FILE.replace("model.d_model", "model.dmodel"))
    status, _, said = call(f"--config={file}", *arguments[1:], place)
    assert (status, said.count("point ")) == (2, 2)
    assert "model.dmodel is not a field of the config: did you mean model.d_model?" in said
    wanted = "defines no sweep(add), which adds the points: see configs/sweeps/, or --config=sweeps/lr_width\n"
    assert call("--config=configs/quickstart.py", place)[::2] == (2, f"error: configs/quickstart.py {wanted}")
    assert "defines no space()" in call(f"--config={file}", place, "--search=tpe")[2]
    status, _, said = call(*arguments, "--config.model.dropout=0.1", place, "--preflight")
    assert (status, said.count("model.attention='blocked' does not support model.dropout=0.1")) == (2, 4)
    assert said.startswith("error: point 1 (d_model=16): ")
    assert call(*arguments, place, "--trials=3")[2].startswith("error: --trials is for a search")
    assert call(*arguments, place, "--runner=slurm", "--slurm=now")[2].startswith("error: --slurm=now is not KEY=VALUE")
    assert not (tmp_path / "sweep").exists()


def test_a_run_folder_is_no_place_for_a_sweep(call, arguments, swept):
    run = next(path.parent for path in swept[0].glob("*/config.json"))
    error = f"error: {run} is the folder of a run, not of a sweep: choose another --workdir\n"
    assert call(*arguments, f"--workdir={run}")[::2] == (2, error)
