"""The first signal sets a flag; the second ends the process, even one that is stuck; the old handlers come back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from bigjax.run import interrupt
from bigjax.run.interrupt import Interrupt
from bigjax.run.processes import agreed
from tests.commands import ROOT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_sets_the_flag_once(monkeypatch, number, code):
    monkeypatch.setattr(interrupt, "REPEAT_S", 1e9)
    before, descriptor = signal.getsignal(number), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    with Interrupt() as stop:
        assert (stop.requested, stop.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (stop.requested, stop.exit_code) == (True, code)
        os.kill(os.getpid(), number)  # the same Ctrl-C, delivered to the process and to its group
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(descriptor) == descriptor
    assert stop.requested
    assert "signals" not in {thread.name for thread in threading.enumerate()}


STUCK = """
import ctypes
from bigjax.run import interrupt

interrupt.REPEAT_S = 0.0
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with interrupt.Interrupt():
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # never returns, nor does a signal interrupt it
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_a_process_that_is_stuck(number, code):
    child = subprocess.Popen([sys.executable, "-c", STUCK], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    sent = 0
    while child.poll() is None:  # two that are pending at a time count as one
        child.send_signal(number)
        sent += 1
        try:
            child.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    _, said = child.communicate()
    assert child.returncode == code
    assert sent >= 2
    assert said == b"\nstopped at once by a second signal; the newest complete checkpoint stays\n"


def test_inert_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Interrupt() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_one_process_agrees_with_itself():
    assert agreed(True) is True
    assert agreed(False) is False
