"""Points as jobs, by submitit's executor for this machine, with a trainer that trains nothing."""

from types import MappingProxyType

import pytest

from bigjax.errors import UserError
from bigjax.science.sweeps.folder import SweepFolder
from experiments.sweep import slurm as sweep_slurm
from experiments.sweep.launch import Launch
from tests import stand_in
from tests.stand_in_sweep import command, points

SIX = points()[:4] + points()[-2:]  # the last two diverge


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv(stand_in.KILLS, "0")
    monkeypatch.setenv("PYTHONPATH", str(stand_in.ROOT))


def local(folder, parameters=MappingProxyType({})):
    """Return submitit's executor for this machine."""
    return sweep_slurm.executor(folder, dict(parameters), "local")


def test_every_point_is_a_job_and_what_is_finished_is_left_alone(tmp_path):
    lines = []
    launch = Launch(SweepFolder(tmp_path), SIX, lines.append)
    sweep_slurm.run(launch, local(tmp_path, {"timeout_min": 5}), lambda: None, command)
    rows = launch.folder.table(SIX)
    assert [row["state"] for row in rows] == ["finished"] * 4 + ["diverged"] * 2
    assert [row["loss"] for row in rows[:4]] == [
        stand_in.loss_after(point.fingerprint, stand_in.STEPS) for point in SIX[:4]
    ]
    assert lines[0].startswith("6 jobs, ")
    again = Launch(SweepFolder(tmp_path), SIX, lines.append)
    sweep_slurm.run(again, local(tmp_path), lambda: None, command)
    assert len(lines) == 1
    assert all((tmp_path / row["run"] / "finishes").read_text() == "x" for row in rows[:4])


def test_a_job_that_is_preempted_is_the_same_once_more(tmp_path):
    job = sweep_slurm.Job(tmp_path, SIX[0], command)
    again = job.checkpoint()
    assert again.function is job
    assert again.result() == "finished"


def test_a_machine_without_slurm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^--runner=slurm: [^\n]*(slurm|sbatch)[^\n]*$"):
        sweep_slurm.executor(tmp_path / "sweep", {})
    assert not (tmp_path / "sweep").exists()


def test_a_parameter_that_submitit_does_not_know(tmp_path):
    with pytest.raises(UserError, match=r"--runner=slurm: .*no_such_thing"):
        local(tmp_path, {"no_such_thing": 1})
