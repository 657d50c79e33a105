"""The flags of commands that run as several processes: what they start, join, and refuse."""

import sys

import jax
import pytest

from bigjax.run import heartbeat
from experiments import cli
from experiments.processes import distributed, group

ALL = ["--coordinator_address=localhost:1234", "--num_processes=2", "--process_id=1"]
LIMITS = {"heartbeat_timeout_seconds": 100, "shutdown_timeout_seconds": 40}


@pytest.fixture
def calls(monkeypatch):
    """Record the calls of jax.distributed.initialize and the groups that are started, instead of doing it."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **how: calls.append((*args, how)))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "command", "--flag"])

    class Group:
        def __init__(self, commands, timeout_s, output):
            self.given = (*[command[1:] for command in commands], timeout_s, output)

        def run(self, max_restarts):
            calls.append((*self.given, max_restarts))
            return 0

    monkeypatch.setattr(group, "Group", Group)
    return calls


def call(function, *argv: str) -> None:
    cli.main(function, doc="", define_flags=distributed.define_flags, config=False, argv=["command", *argv])


def test_without_the_flags_nothing_happens(calls):
    call(distributed.supervise)
    call(distributed.initialize)
    assert calls == []


def test_the_flags_of_one_process_reach_jax_in_a_watched_process(calls, monkeypatch):
    call(distributed.supervise, *ALL)
    assert calls == [(["-m", "command", "--flag"], 40.0, False, 0)]
    monkeypatch.setenv(heartbeat.FD, "9")
    call(distributed.supervise, *ALL)
    call(distributed.initialize, *ALL)
    call(distributed.initialize, "--distributed", "--peer_timeout_s=10")
    assert calls[1:] == [
        ("localhost:1234", 2, 1, LIMITS),
        ({"heartbeat_timeout_seconds": 100, "shutdown_timeout_seconds": 10},),
    ]


def test_a_number_of_processes_alone_starts_them_all(calls):
    call(distributed.supervise, "--num_processes=3", "--max_restarts=2", "--peer_timeout_s=9", "--all_output")
    ((*commands, timeout_s, output, restarts),) = calls
    assert (timeout_s, output, restarts) == (9.0, True, 2)
    assert [command[:3] for command in commands] == [["-m", "command", "--flag"]] * 3
    assert [command[4] for command in commands] == ["--process_id=0", "--process_id=1", "--process_id=2"]
    (address,) = {command[3] for command in commands}
    assert address.startswith("--coordinator_address=127.0.0.1:")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--process_id=2"],
            "--coordinator_address and --num_processes missing: a process started by hand needs all of "
            "--coordinator_address, --num_processes, --process_id",
        ),
        ([*ALL[:2], "--process_id=2"], "--process_id=2 is not between 0 and --num_processes=2 minus 1"),
        (["--num_processes=0"], "--num_processes=0 is not at least 1"),
        (["--num_processes=2", "--max_restarts=-1"], "--max_restarts=-1 is not at least 0"),
        (
            [*ALL, "--max_restarts=1"],
            "--max_restarts is for a group that --num_processes=N alone starts on this machine",
        ),
        (["--distributed", *ALL[1:]], "--distributed finds out by itself what --num_processes and --process_id says"),
        (["--peer_timeout_s=0"], "--peer_timeout_s=0 is not above 0"),
    ],
)
def test_flags_that_do_not_fit_are_explained(calls, capsys, argv, message):
    with pytest.raises(SystemExit) as caught:
        call(distributed.supervise, *argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert calls == []


def test_without_a_cluster_there_is_one_sentence(monkeypatch, capsys):
    def initialize(**how):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(SystemExit):
        call(distributed.initialize, "--distributed")
    assert capsys.readouterr().err.startswith("error: --distributed: JAX finds no SLURM, GKE, TPU or Open MPI job here")
