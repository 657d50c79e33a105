"""Two trainers never share a run folder, and a lock whose owner is gone is in nobody's way."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from bigjax.errors import UserError
from bigjax.run import lease
from bigjax.run import lock as run_lock
from tests.commands import TINY, Commands, contents, shared_cache


def lock_of(folder, **fields) -> None:
    """Leave the lock of this process in `folder`, with other fields."""
    with run_lock.held(folder):
        owner = json.loads((folder / run_lock.LOCK).read_text())
    folder.mkdir(exist_ok=True)
    (folder / run_lock.LOCK).write_text(json.dumps(owner | fields))


def test_the_second_trainer_is_refused_and_told_who_the_first_is(tmp_path_factory, tmp_path):
    commands, run = Commands(shared_cache(tmp_path_factory)), tmp_path / "run"
    with run_lock.held(run):
        since = json.loads((run / run_lock.LOCK).read_text())["since"]
        before = contents(run)
        done = commands.run("experiments.train", *TINY, f"--workdir={run}", code=2)
        assert done.stderr.splitlines()[1:] == [
            f"error: {run} is in use by another trainer: host {socket.gethostname()}, pid {os.getpid()}, "
            f"since {since}; stop that one, or choose another --workdir"
        ]
        assert contents(run) == before
    assert not run.exists()
    commands.run("experiments.train", *TINY, f"--workdir={run}")
    assert not (run / run_lock.LOCK).exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, capsys):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    lock_of(tmp_path / "run", pid=child.pid, since="yesterday")
    with run_lock.held(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / run_lock.LOCK).read_text())["pid"] == os.getpid()
    said = capsys.readouterr().err
    assert said == (
        f"note: the trainer that had {tmp_path}/run (host {socket.gethostname()}, pid {child.pid}, since yesterday) "
        "is gone\n"
    )


def test_a_zombie_and_another_process_of_the_same_number_are_no_owners(tmp_path):
    # The child is dead once its pipe is at its end, and not waited for.
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        lock_of(tmp_path / "zombie", pid=child.pid)
        with run_lock.held(tmp_path / "zombie"):
            pass
    lock_of(tmp_path / "reused", ticks=1)
    with run_lock.held(tmp_path / "reused"):
        pass


def test_the_lock_of_another_machine_holds_while_it_is_renewed(tmp_path):
    lock_of(tmp_path / "run", host="elsewhere", pid=1)
    with pytest.raises(run_lock.InUse, match="in use by another trainer: host elsewhere, pid 1, since"):
        run_lock.held(tmp_path / "run").__enter__()
    old = time.time() - lease.LEASE_S - 1
    os.utime(tmp_path / "run" / run_lock.LOCK, (old, old))
    with run_lock.held(tmp_path / "run"):
        pass


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_neither_takes_over_nor_keeps_a_lock(tmp_path, monkeypatch, jump):
    lock_of(tmp_path / "run", host="elsewhere", pid=1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    with pytest.raises(run_lock.InUse):
        run_lock.held(tmp_path / "run").__enter__()
    old = now - lease.LEASE_S - 1
    os.utime(tmp_path / "run" / run_lock.LOCK, (old, old))
    with run_lock.held(tmp_path / "run"):
        pass


def test_the_owner_renews_its_lock(tmp_path, monkeypatch):
    class Twice:
        """An event that is set after one renewal."""

        waited = 0

        def wait(self, seconds):
            self.waited += 1
            return self.waited > 1

    (tmp_path / "lock").touch()
    os.utime(tmp_path / "lock", (1, 1))
    lease._renew([tmp_path / "lock"], Twice())
    assert (tmp_path / "lock").stat().st_mtime > 1


def test_half_a_lock_is_none(tmp_path):
    for text in ("", '{"host": "a', "[]", '{"host": "a"}'):
        (tmp_path / run_lock.LOCK).write_text(text)
        with run_lock.held(tmp_path):
            pass
        tmp_path.mkdir(exist_ok=True)


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder: choose another --workdir"):
        run_lock.held(tmp_path / "file").__enter__()
    with pytest.raises(UserError, match=r"cannot be written to \(Not a directory\): choose another --workdir"):
        run_lock.held(tmp_path / "file" / "run").__enter__()
