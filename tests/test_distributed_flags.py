"""The flags of experiments.cli that join the processes of one run."""

import jax
import pytest

from experiments import cli

ALL = ["--coordinator_address=localhost:1234", "--num_processes=2", "--process_id=1"]


@pytest.fixture
def calls(monkeypatch):
    """Record the calls of jax.distributed.initialize instead of making them."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    return calls


def initialize(*argv: str) -> None:
    cli.main(
        cli.initialize_distributed,
        doc="",
        define_flags=cli.define_distributed_flags,
        config=False,
        argv=["command", *argv],
    )


def test_without_the_flags_nothing_happens(calls):
    initialize()
    assert calls == []


def test_the_flags_reach_jax(calls):
    initialize(*ALL)
    assert calls == [("localhost:1234", 2, 1)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--num_processes=2"],
            "--coordinator_address and --process_id missing: a run of several processes needs all of "
            "--coordinator_address, --num_processes, --process_id",
        ),
        ([*ALL[:2], "--process_id=2"], "--process_id=2 is not between 0 and --num_processes=2 minus 1"),
    ],
)
def test_flags_that_do_not_fit_are_explained(calls, capsys, argv, message):
    with pytest.raises(SystemExit) as caught:
        initialize(*argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert calls == []
