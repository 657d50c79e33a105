"""Processes of one run that are lost: the others end and say who it was and in which phase; the group starts again."""

import signal
import socket
import sys

import pytest

from experiments.processes.group import Group
from experiments.processes.peers import Seen, who_is_lost
from tests.commands import TINY, Commands, finish, free_port, rows, shared_cache

RUN = (*TINY, "--config.checkpoint.every_steps=2", "--config.train.eval_every_steps=0")
RUN = (*RUN, "--config.checkpoint.asynchronous=false")
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


@pytest.fixture(scope="module")
def undisturbed(commands, tmp_path_factory):
    """The folder of a run of a local group of 2, and what its command said."""
    workdir = tmp_path_factory.mktemp("runs") / "group"
    done = commands.run("experiments.train", *RUN, "--num_processes=2", "--all_output", f"--workdir={workdir}")
    return workdir, done


@pytest.mark.exhaustive
def test_a_local_group_trains_and_its_output_is_told_apart(undisturbed):
    workdir, done = undisturbed
    assert (workdir / "result.json").exists()
    assert not (workdir / "processes.tmp").exists()
    assert "[0] mesh: data 2 (cpu)" in done.stderr
    assert "[1] bigjax: run " in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.exhaustive
def test_a_killed_process_is_named_and_the_group_goes_on_from_the_checkpoint(commands, undisturbed, tmp_path):
    lost = ("tests.lost", "SIGKILL@5#1", tmp_path / "killed", "experiments.train")
    group = ("--num_processes=2", "--max_restarts=1", f"--workdir={tmp_path}/run")
    said = commands.run(*lost, *RUN, *group).stderr
    pid = (tmp_path / "killed").read_text()
    assert f"error: process 1 of 2 ({HOST}, pid {pid}) was ended by SIGKILL in phase " in said
    assert f"  process 0 of 2 ({HOST}, pid " in said
    assert "restart 1 of at most 1, from the newest checkpoint\n" in said
    assert "resuming after step 4\n" in said
    assert rows(tmp_path / "run") == rows(undisturbed[0])


@pytest.mark.exhaustive
def test_a_stopped_process_is_named_and_nothing_hangs(commands, tmp_path):
    lost = ("tests.lost", "SIGSTOP@5#0", tmp_path / "stopped", "experiments.train")
    group = ("--num_processes=2", "--peer_timeout_s=5", f"--workdir={tmp_path}/run")
    said = commands.run(*lost, *RUN, *group, code=6).stderr
    pid = (tmp_path / "stopped").read_text()
    assert f"error: process 0 of 2 ({HOST}, pid {pid}) gave no sign of life for 5 s in phase " in said
    assert f"  process 1 of 2 ({HOST}, pid " in said


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("number", "how"),
    [
        ("SIGKILL", "was ended by SIGKILL"),
        pytest.param("SIGSTOP", "gave no sign of life for 5 s", marks=pytest.mark.exhaustive),
    ],
)
def test_processes_started_by_hand_name_the_one_that_is_lost(commands, tmp_path, number, how):
    """As on several machines: nobody but the processes themselves, and the run folder, tells who is there."""
    lost = ("tests.lost", f"{number}@5#1", tmp_path / "lost", "experiments.train")
    flags = ("--num_processes=2", f"--coordinator_address=127.0.0.1:{free_port()}", "--peer_timeout_s=5")
    group = (*RUN, *flags, f"--workdir={tmp_path}/run")
    both = [commands.start(*lost, *group, f"--process_id={index}") for index in range(2)]
    for done in [finish(process, 6) for process in both]:
        pid = (tmp_path / "lost").read_text()
        assert f"error: process 1 of 2 ({HOST}, pid {pid}) {how} in phase " in done.stderr
        assert f"  process 0 of 2 ({HOST}, pid " in done.stderr


@pytest.mark.exhaustive
def test_the_processes_of_a_slurm_job_find_each_other(commands, undisturbed, tmp_path):
    """What JAX reads of SLURM's own variables is all that `--distributed` needs."""
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    both = [
        commands.start(
            "experiments.train",
            *RUN,
            "--distributed",
            f"--workdir={tmp_path}/run",
            variables=job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"},
        )
        for index in range(2)
    ]
    for process in both:
        finish(process, 0)
    assert rows(tmp_path / "run") == rows(undisturbed[0])
    assert not (tmp_path / "run" / "processes.tmp").exists()


def test_a_signal_is_passed_on_and_ends_the_group_in_order():
    member = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "while True: signal.pause()\n"
    )
    before = signal.getsignal(signal.SIGTERM)
    assert Group([[sys.executable, "-c", member]], 5.0, output=False).run(max_restarts=3) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_member_that_fails_is_shown_and_started_again_as_often_as_allowed(capfd):
    fails = [sys.executable, "-c", "import sys; print('no such device'); sys.exit(1)"]
    waits = [sys.executable, "-c", "import signal; signal.pause()"]
    assert Group([waits, fails], 5.0, output=False).run(max_restarts=1) == 6
    said = capfd.readouterr().err
    assert said.count("error: process 1 of 2 (here, pid 0) ended with status 1 in phase start\n") == 2
    assert said.count("[1] no such device\n") == 2
    assert said.count("restart 1 of at most 1") == 1


def seen(at: float, phase: str = "step", step: int = 3, *, since: float = 0.0, **end) -> Seen:
    return Seen({"phase": phase, "step": step, "processes": 2}, at, since, **end)


ABORTED = {"status": -signal.SIGABRT, "ended_at": 100.0}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (seen(99), seen(100), {}),
        (seen(89), seen(100), {0: "gave no sign of life for 10 s"}),
        (seen(100, status=-9, ended_at=100.0), seen(100, **ABORTED), {0: "was ended by SIGKILL"}),
        # One that aborted may be a consequence: the cause shows within the time limit, or is itself.
        (seen(95), seen(100, **ABORTED), {}),
        (seen(89), seen(100, **ABORTED), {0: "gave no sign of life for 10 s"}),
        (seen(101.5), seen(100, **ABORTED), {1: "was ended by SIGABRT"}),
        # Compiling and saving may take long, a batch may not; before the first step the text is prepared.
        (seen(100, "compile", since=50), seen(100), {}),
        (seen(100, "data", since=50), seen(100), {0: "has waited for a batch for 10 s"}),
        (seen(100, "data", 0, since=50), seen(100), {}),
    ],
)
def test_who_is_lost(one, other, expected):
    assert who_is_lost({0: one, 1: other}, 10.0, 100.0) == expected
