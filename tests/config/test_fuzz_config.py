"""Random configs and command lines: refused in a sentence, or taken exactly as they were given."""

import contextlib
import io
import math
import typing

import pytest
from hypothesis import strategies as st

from bigjax.config import Config, strict
from bigjax.config import fields as schema
from experiments import cli
from tests.fuzzing import JUNK, attempt, check_sentence, lengths, outcomes, search

PATHS = schema.field_paths(Config)


@st.composite
def values(draw: st.DrawFn, path: str):
    """Return a value for a field: mostly one of its kind, near its bounds or far from them."""
    inner, optional = schema.unwrap_optional(PATHS[path][0])
    if draw(st.integers(0, 3)) == 0:
        return draw(JUNK)
    if optional and draw(st.booleans()):
        return None
    if typing.get_origin(inner) is typing.Literal:
        return draw(st.sampled_from(typing.get_args(inner)))
    if typing.get_origin(inner) is tuple:
        kind = typing.get_args(inner)[0]
        return draw(st.lists(_plain(kind), max_size=3))
    return draw(_plain(inner))


def _plain(kind: type) -> st.SearchStrategy:
    return {
        bool: st.booleans(),
        int: st.one_of(st.integers(-2, 9), st.sampled_from([16, 64, 1000, 2**40])),
        float: st.one_of(st.floats(0, 1), st.floats()),
        str: st.text(max_size=10),
    }[kind]


@st.composite
def overrides(draw: st.DrawFn) -> dict:
    """Return values by the paths of up to four fields, one of which may be misspelled."""
    chosen = {path: draw(values(path)) for path in draw(st.sets(st.sampled_from(sorted(PATHS)), max_size=4))}
    if draw(st.integers(0, 9)) == 0:
        extra = draw(st.sampled_from(("optim.lrr", "model", "train.steps.x", "", "ünknown")))
        # A whole section in the place of its fields, which would not reach the config beside it.
        chosen = {path: value for path, value in chosen.items() if not path.startswith(f"{extra}.")}
        chosen[extra] = draw(JUNK)
    return chosen


def nested(flat: dict) -> dict:
    found: dict = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        node = found
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        node[name] = value
    return found


def same(given, kept) -> bool:
    """Whether a field holds what was given, or what a zero that means `derive it` stands for."""
    if isinstance(given, (list, tuple)):
        return len(given) == len(kept) and all(map(same, given, kept))
    if isinstance(kept, float) and not isinstance(given, bool):
        return float(given) == kept
    return given == kept or (type(given) is int and given == 0)


@lengths(300, 2500)
def test_fields(count, record_property):
    def case(flat):
        with attempt():
            cfg = strict.from_dict(Config, nested(flat))
            stored = strict.to_dict(cfg)
            assert strict.from_dict(Config, stored) == cfg
            assert strict.fingerprint(cfg) == strict.fingerprint(strict.from_dict(Config, stored))
            kept = {leaf.path: leaf.value for leaf in strict.leaves(cfg)}
            derived = cfg.model.family == "rnn"  # positions
            for path, given in flat.items():
                if path in kept:
                    assert same(given, kept[path]) or (derived and path == "model.positions"), (path, given, kept[path])

    search(count, case, overrides())
    record_property("fuzz_cases", count)


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """Return flags as a user types them, and mistypes them."""
    found = []
    for path, value in draw(overrides()).items():
        text = value if isinstance(value, str) else repr(value)
        if isinstance(value, float) and math.isfinite(value):
            text = f"{value:g}"
        form = draw(st.sampled_from(("--config.{}={}", "--config.{}={}", "--config.{}", "-config.{}={}", "--{}={}")))
        found.append(form.format(path, text))
    if draw(st.integers(0, 5)) == 0:
        found.append(
            draw(st.one_of(st.text(max_size=12), st.sampled_from(("--noconfig.model.qk_norm", "--workdirr=x"))))
        )
    return found


@lengths(100, 800)
def test_command_lines(count, record_property):
    def load(flag_values) -> None:
        cli.load_config(flag_values.config)

    def case(extra):
        argv = ["train", "--config=configs/quickstart.py", *extra]
        said, status = io.StringIO(), 0
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), attempt():
                cli.main(load, doc="Train.", argv=argv)
        except SystemExit as end:
            status = end.code
        if status:
            assert status == 2
            assert said.getvalue().startswith("error: ")
            check_sentence(said.getvalue())
            outcomes["refused"] += 1

    search(count, case, arguments())
    record_property("fuzz_cases", count)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Relative paths of configs count from there."""
    from tests.commands import ROOT

    monkeypatch.chdir(ROOT)
