"""Random bad input, found by hypothesis: every outcome is success or one clear error of the user's.

`search(count, cases, strategies...)` calls `cases` so often, the same cases every time. What it calls wraps the code
under test in `attempt()`, which lets user errors pass for an answer and nothing else: an exception of another kind, a
hang, or a pickle that is read fails the test, and hypothesis then looks for the smallest case that does.
"""

import contextlib
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigjax.errors import UserError

HANGS_S = 60
"""Far more than any case takes; what takes longer hangs."""

MAX_LENGTH = 4_000
"""Characters of a clear error, which may list some differences."""

outcomes: Counter[str] = Counter()
"""How many cases ended how, since the last `search` began."""

_unpickled: list[str] = []


def _audit(event: str, args: tuple) -> None:
    if event == "pickle.find_class":
        _unpickled.append(".".join(map(str, args)))


sys.addaudithook(_audit)


def lengths(short: int, long: int) -> pytest.MarkDecorator:
    """Return the parameter `count` of a test: so many cases, and with `pytest -m faults` so many."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.faults)])


def search(count: int, cases: Callable[..., None], *strategies: st.SearchStrategy) -> None:
    """Call `cases` with `count` examples of the strategies. Of the outcomes, success and refusal must both occur."""
    outcomes.clear()
    quiet = settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    quiet(given(*strategies)(cases))()
    print(outcomes)
    assert outcomes["success"] and outcomes["refused"], outcomes


@contextlib.contextmanager
def attempt(code: int = 2) -> Iterator[None]:
    """Run the code under test: it succeeds, or raises a UserError of exit status `code` that reads as a sentence."""
    _unpickled.clear()
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.setitimer(signal.ITIMER_REAL, HANGS_S)
    try:
        yield
    except UserError as error:
        check_sentence(str(error))
        assert error.exit_code == code
        outcomes["refused"] += 1
    else:
        outcomes["success"] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not _unpickled, f"a pickle was read: {_unpickled}"


def check_sentence(said: str) -> None:
    """Assert that a message says something, at a length that is read, and is no traceback."""
    assert 10 < len(said) < MAX_LENGTH, said
    assert "Traceback" not in said and not re.search(r'File ".*", line \d', said), said


def _hangs(*_: Any) -> None:
    raise AssertionError(f"no answer within {HANGS_S} s")


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
"""Values where another kind was expected."""


@st.composite
def spoiled_json(draw: st.DrawFn, text: str) -> str:
    """Return a JSON file in which a few values are replaced, removed or doubled, or the text itself is damaged."""
    if draw(st.integers(0, 9)) == 0:
        return draw(spoiled_bytes(text.encode())).decode(errors="replace")
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        value = _spoil(draw, value)
    return json.dumps(value)


def _spoil(draw: st.DrawFn, value: Any) -> Any:
    """Change one place of a nested value; which one is drawn level by level, so that deep ones are reached."""
    inside = isinstance(value, (dict, list)) and value and draw(st.integers(0, 7)) > 0
    if not inside:
        return draw(JUNK)
    key = draw(st.sampled_from(sorted(value))) if isinstance(value, dict) else draw(st.integers(0, len(value) - 1))
    how = draw(st.sampled_from(("deeper", "deeper", "deeper", "remove", "junk", "add")))
    if how == "remove":
        del value[key]
    elif how == "add" and isinstance(value, dict):
        value[draw(st.text(max_size=6))] = draw(JUNK)
    else:
        value[key] = draw(JUNK) if how == "junk" else _spoil(draw, value[key])
    return value


@st.composite
def spoiled_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes cut short, overwritten, repeated or with others put in between."""
    at = draw(st.integers(0, len(content)))
    how = draw(st.sampled_from(("cut", "overwrite", "insert", "repeat", "empty")))
    if how == "cut":
        return content[:at]
    if how == "empty":
        return b""
    other = draw(st.binary(min_size=1, max_size=12))
    if how == "overwrite":
        return content[:at] + other + content[at + len(other) :]
    return content[:at] + (other if how == "insert" else content[at : at + 64]) + content[at:]


def spoil_file(draw: Callable[[st.SearchStrategy], Any], path: Path) -> None:
    """Damage a file in one of the ways that its kind allows."""
    content = path.read_bytes()
    if path.suffix == ".json" and content.strip():
        path.write_text(draw(spoiled_json(content.decode())), encoding="utf-8")
    else:
        path.write_bytes(draw(spoiled_bytes(content)))
