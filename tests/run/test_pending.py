"""When a step is read: once each, in order, one step late where steps run ahead of the host."""

import pytest

from bigjax.run import Pending, runtime


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (False, ["dispatch 1", "read 1", "dispatch 2", "read 2", "save 2", "dispatch 3", "read 3"]),
        (True, ["dispatch 1", "dispatch 2", "read 1", "read 2", "save 2", "dispatch 3", "read 3"]),
    ],
)
def test_every_step_is_read_once_and_before_it_is_saved(monkeypatch, ahead, expected):
    monkeypatch.setattr(runtime, "dispatches_ahead", lambda: ahead)
    events = []
    pending = Pending(lambda step, loss: events.append(f"read {step}"))
    for step in (1, 2, 3):
        events.append(f"dispatch {step}")
        pending.dispatched(step, 0.5)
        pending.settle(at_once=step == 2)
        if step == 2:
            events.append("save 2")
    pending.flush()
    pending.flush()
    assert events == expected


def test_a_step_whose_reading_raised_is_not_read_again(monkeypatch):
    monkeypatch.setattr(runtime, "dispatches_ahead", lambda: True)

    def diverged(step):
        raise ArithmeticError(step)

    pending = Pending(diverged)
    pending.dispatched(1)
    with pytest.raises(ArithmeticError):
        pending.flush()
    pending.flush()
