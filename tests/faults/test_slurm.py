"""On a real Slurm of one node: the job script trains, ends early and is queued again, and a sweep is a job array."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigjax.checkpoint.digests import DIGESTS
from bigjax.science.sweeps.folder import SweepFolder
from experiments.sweep import slurm as sweep_slurm
from experiments.sweep.launch import Launch
from tests import one_node_slurm, stand_in
from tests.commands import ROOT, Commands, read, rows, shared_cache
from tests.experiments.test_group import RUN
from tests.stand_in_sweep import command, points

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(one_node_slurm.missing() is not None, reason=str(one_node_slurm.missing())),
]
SCRIPT = ROOT / "experiments" / "cluster" / "slurm.sbatch"
TWO_TASKS = ("--ntasks-per-node=2", "--nodes=1", "--time=20")


@pytest.fixture(scope="module")
def slurm():
    """The environment variables of Slurm's commands."""
    with one_node_slurm.running() as conf:
        yield {"SLURM_CONF": str(conf), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def undisturbed(commands, tmp_path_factory):
    """The folder of a run of two processes without Slurm."""
    workdir = tmp_path_factory.mktemp("runs") / "group"
    commands.run("experiments.train", *RUN, "--num_processes=2", f"--workdir={workdir}")
    return workdir


def submission(slurm, folder: Path, cache: Path, *arguments: str) -> dict[str, Any]:
    """Return how to submit the job script as a user does: arguments of `subprocess.run`. It writes to `job.log`."""
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled"),
        "XDG_CACHE_HOME": str(cache),
    }
    command = ["sbatch", *TWO_TASKS, f"--output={folder}/job.log", str(SCRIPT), *arguments]
    return {"args": command, "cwd": ROOT, "env": os.environ | slurm | variables, "capture_output": True, "text": True}


def submit(slurm, folder: Path, cache: Path, *arguments: str) -> tuple[int, str]:
    """Submit the job script and wait; return the exit status of the job and what it said."""
    how = submission(slurm, folder, cache, *arguments)
    done = subprocess.run(**{**how, "args": ["sbatch", "--wait", *how["args"][1:]]})
    assert done.stdout.startswith("Submitted batch job "), done.stderr
    return done.returncode, (folder / "job.log").read_text()


def call(slurm, *command: str) -> str:
    """Return what a command of Slurm prints."""
    return subprocess.run(command, env=os.environ | slurm, capture_output=True, text=True, check=True).stdout


def test_jax_finds_the_processes_of_a_job(slurm, commands, undisturbed, tmp_path, tmp_path_factory):
    workdir = tmp_path / "run"
    status, said = submit(slurm, tmp_path, shared_cache(tmp_path_factory), *RUN, f"--workdir={workdir}")
    assert status == 0, said
    assert "0: mesh: data 2 (cpu)" in said
    assert "Warning" not in said and "Traceback" not in said
    (session,) = read(workdir / "environment.json")["sessions"]
    assert (session["processes"], session["devices"]["count"]) == (2, 2)
    assert rows(workdir) == rows(undisturbed)
    assert read(workdir / "result.json")["eval_loss"] == read(undisturbed / "result.json")["eval_loss"]


def test_bad_input_ends_the_job_at_once(slurm, tmp_path, tmp_path_factory):
    wrong = (*RUN, "--config.optim.lr=no", f"--workdir={tmp_path}/run")
    status, said = submit(slurm, tmp_path, shared_cache(tmp_path_factory), *wrong)
    assert status == 2, said
    assert said.count("error: --config.optim.lr=no is not ") == 2


def test_a_task_that_fails_before_another_has_started_ends_the_job(slurm, tmp_path, tmp_path_factory):
    late = "import os, time\nif os.environ.get('SLURM_PROCID') == '1':\n    time.sleep(600)\n"
    (tmp_path / "sitecustomize.py").write_text(late)
    with_late_task = slurm | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    wrong = (*RUN, "--config.optim.lr=no", f"--workdir={tmp_path}/run")
    status, said = submit(with_late_task, tmp_path, shared_cache(tmp_path_factory), *wrong)
    assert status == 2, said
    assert said.count("error: --config.optim.lr=no is not ") == 1  # and was not queued again
    assert not list(ROOT.glob("bigjax-*.failed"))


@pytest.mark.parametrize("ending", ["lost", "preempted"])
def test_a_job_that_ends_early_is_queued_again_and_goes_on(slurm, tmp_path, tmp_path_factory, ending):
    workdir, steps = tmp_path / "run", 200
    long = (f"--config.train.steps={steps}", "--config.checkpoint.every_steps=50", f"--workdir={workdir}")
    pushed = []

    def disturb() -> bool:
        """End one process, or all in order, once the first checkpoint is there; return whether the job is done."""
        if not pushed and (workdir / "checkpoints" / "50" / DIGESTS).exists():
            (job,) = call(slurm, "squeue", "--noheader", "--format=%A").split()
            if ending == "lost":
                os.kill(read(workdir / "processes.tmp" / "1.json")["pid"], signal.SIGKILL)
            else:  # what Slurm does as the time limit comes near
                call(slurm, "scancel", "--signal=TERM", job)
            pushed.append(job)
        return (workdir / "result.json").exists() or not call(slurm, "squeue", "--noheader")

    submitted = submission(slurm, tmp_path, shared_cache(tmp_path_factory), *RUN, *long)
    subprocess.run(**submitted, check=True)
    one_node_slurm.until(tmp_path, disturb, 200)
    one_node_slurm.until(tmp_path, lambda: not call(slurm, "squeue", "--noheader"), 60)
    said = (tmp_path / "job.log").read_text()
    assert read(workdir / "result.json")["steps"] == steps, said
    assert len(read(workdir / "environment.json")["sessions"]) == 2
    assert "0: resuming after step " in said
    assert ("was ended by SIGKILL in phase " in said) == (ending == "lost")


def test_points_of_a_sweep_are_an_array_of_jobs(slurm, tmp_path, monkeypatch):
    for name, value in (slurm | {stand_in.KILLS: "0", "PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    lines, chosen = [], [*points()[:4], points()[-1]]  # the last one diverges
    launch = Launch(SweepFolder(tmp_path), chosen, lines.append)
    executor = sweep_slurm.executor(tmp_path, {"timeout_min": 5, "slurm_partition": "main"})
    sweep_slurm.run(launch, executor, lambda: None, command)
    found = launch.folder.table(chosen)
    assert [row["state"] for row in found] == ["finished"] * 4 + ["diverged"], lines
    expected = [stand_in.loss_after(point.fingerprint, stand_in.STEPS) for point in chosen[:4]]
    assert [row["loss"] for row in found[:4]] == expected
    assert lines[0].startswith("5 jobs, ") and "_0 and on; " in lines[0]
    assert all((tmp_path / row["run"] / "starts").read_text() == "x" for row in found)
