"""Signals set a flag; a second one ends the wait; the old handlers come back."""

import os
import signal
import threading

import pytest

from bigjax import interrupt
from bigjax.interrupt import Interrupt, agreed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_sets_the_flag_once(number, code):
    before = signal.getsignal(number)
    with Interrupt() as stop:
        assert (stop.requested, stop.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert (stop.requested, stop.exit_code) == (True, code)
        os.kill(os.getpid(), number)  # the same Ctrl-C, delivered to the process and to its group
    assert signal.getsignal(number) is before
    assert stop.requested


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_second_signal_ends_the_wait(monkeypatch, number, error):
    monkeypatch.setattr(interrupt, "REPEAT_S", 0.0)
    before = signal.getsignal(number)
    with pytest.raises(error) as raised, Interrupt():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    if error is SystemExit:
        assert raised.value.code == 143


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
