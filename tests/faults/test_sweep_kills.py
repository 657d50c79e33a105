"""200 points, workers killed at random steps and launches killed too: every point ends once, the table is the same."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bigjax.run import lease
from bigjax.run.rows import read_rows
from bigjax.science.sweeps.folder import SweepFolder
from tests import stand_in
from tests.commands import ROOT
from tests.stand_in_sweep import points


def launch(folder: Path, kills: float) -> subprocess.Popen:
    """Start a launch in which this share of the trainers' starts ends by SIGKILL."""
    environment = os.environ | {stand_in.KILLS: str(kills), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    arguments = [sys.executable, "-m", "tests.stand_in_sweep", folder]
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.exhaustive
def test_every_point_ends_once_whoever_is_killed(tmp_path):
    folder, first = SweepFolder(tmp_path), launch(tmp_path, kills=0.3)
    assert first.stdout is not None
    said = [first.stdout.readline() for _ in range(60)]  # 60 ends of points, and kills
    second = launch(tmp_path, kills=0.3)
    first.kill()
    said += first.communicate()[0].splitlines() + second.communicate()[0].splitlines()
    assert second.returncode == 0
    assert sum("killed" in line for line in said) > 20
    rows = folder.table(points())
    assert [row["number"] for row in rows] == list(range(1, 201))
    for point, row in zip(points(), rows, strict=True):
        whole = stand_in.loss_after(point.fingerprint, stand_in.STEPS)
        assert row["loss"] == (whole if point.cfg.optim.lr <= stand_in.FAILS else None)
    counts = collections.Counter(row["state"] for row in rows)
    rates = [point.cfg.optim.lr for point in points()]
    assert counts["diverged"] == sum(rate > stand_in.DIVERGES for rate in rates) > 0
    assert counts["failed"] == sum(stand_in.FAILS < rate <= stand_in.DIVERGES for rate in rates) > 0
    assert counts["finished"] == 200 - counts["diverged"] - counts["failed"]
    assert {row["reason"] for row in rows if row["state"] == "diverged"} == {"step 3 is not finite"}
    assert all("RuntimeError: a bug" in row["reason"] for row in rows if row["state"] == "failed")
    for row in rows:
        steps = [entry["step"] for entry in read_rows(tmp_path / row["run"] / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))  # nothing is trained twice
        if row["state"] == "finished":
            assert (tmp_path / row["run"] / "finishes").read_text() == "x"
    # Nobody works on anything, and there is nothing left to do but to try the failed ones again.
    third = launch(tmp_path, kills=0.0)
    again = third.communicate()[0].splitlines()
    assert len(again) == counts["failed"]
    assert folder.table(points()) == rows
    assert [path for path in folder.claims.iterdir() if lease.holder(path)] == []
