"""The first field that a user changes in a shipped config: it runs, or the refusal says what to set, and that works.

For every variant of a config and every change: validation, and the learning rates of the first and the last update. For
one variant of each file also the trace of the step on an abstract mesh. Nothing is compiled.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import jax
import numpy as np
import pytest

from bigjax import sharding
from bigjax.config import Config, fields, strict
from bigjax.data.batches import ramp
from bigjax.errors import ConfigError, UserError
from bigjax.preflight.plan import program
from bigjax.train import optimizers
from experiments import config_source
from tests.commands import ROOT

FILES = [
    str(path.relative_to(ROOT))
    for folder in ("configs", "configs/sweeps")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "__init__.py"
]
ALWAYS = ("configs/quickstart.py", "configs/bert.py", "configs/llama.py")
"""What the default tests look at: a config with shares of both kinds, one of odd heads, one split over all devices."""

CURE = re.compile(r"\bset ((?:\w+\.)+\w+)=([^\s,;:]+)(?: and ((?:\w+\.)+\w+)=([^\s,;:]+))?")
"""What a refusal offers: one field or two, with values."""

UNTRACED = ("train.steps", "train.seed", "optim.lr", "optim.schedule", "optim.warmup")
"""Fields that change numbers of the program only."""

Change = tuple[str, Any]


def files(*always: str) -> list[Any]:
    return [pytest.param(name, marks=[] if name in always else pytest.mark.exhaustive) for name in FILES]


def variants(file: str) -> list[str]:
    """Return the config of each argument that a file takes."""
    module = config_source._load_module(file)
    return [f"{file}:{argument}" for argument in getattr(module, "ARGUMENTS", ())] or [file]


def changes(cfg: Config) -> Iterator[Change]:
    """Yield what a user would change first: half and double of each size, and all there is to choose from."""
    for path in ("train.global_batch_size", "data.seq_len", "model.num_layers", "model.vocab_size", "model.d_model"):
        section, name = path.split(".")
        size = getattr(getattr(cfg, section), name)
        yield from ((path, max(size // 2, 1)), (path, 2 * size))
    yield from (("model.d_model", width) for width in (64, 128))
    yield from (("train.steps", steps) for steps in (max(cfg.train.steps // 2, 1), 2 * cfg.train.steps, 1, 10, 60))
    yield from (("optim.lr", cfg.optim.lr * factor) for factor in (0.5, 2.0))
    for path in ("optim.name", "optim.schedule", "model.dtype"):
        yield from ((path, choice) for choice in get_args(fields.field_paths(Config)[path][0]))
    yield from (("optim.warmup", 0), ("train.seed", 1))
    yield from ((f"mesh.{axis}", -1) for axis in ("fsdp", "tensor", "expert"))


def resolved(base: dict[str, Any], changed: list[Change]) -> Config:
    """Return the config of a command line with these overrides."""
    nested = {name: dict(part) if isinstance(part, dict) else part for name, part in base.items()}
    for path, value in changed:
        *sections, name = path.split(".")
        node = nested
        for section in sections:
            node[section] = node = dict(node[section])
        node[name] = value
    return strict.from_dict(Config, nested)


def cured(base: dict[str, Any], change: Change, error: UserError) -> list[Change]:
    """Return the change and what its refusal says to set, with which it must be refused no more."""
    changed = [change]
    for _ in range(3):
        for line in str(error).splitlines():
            found = CURE.search(line)
            assert found, f"{change} is refused without a cure: {line}"
            pairs = zip(found.groups()[::2], found.groups()[1::2], strict=True)
            changed += [(path, ast.literal_eval(value)) for path, value in pairs if path]
        try:
            resolved(base, changed)
        except ConfigError as again:
            error = again
            continue
        return changed
    raise AssertionError(f"{changed}, as the refusals said, is refused, too: {error}")


def check_rates(cfg: Config) -> None:
    """The first rate is above 0 or all are, and none is above the peak."""
    grown = ramp.build(cfg)
    rate = optimizers.schedule(cfg.optim, cfg.train.steps, grown)
    found = optimizers.rates(rate, np.array([0, cfg.train.steps // 2, cfg.train.steps - 1]))
    assert np.all((found >= 0) & (found <= np.float32(cfg.optim.lr))) and found.max() > 0, found


def trace(cfg: Config, devices: int) -> None:
    """Trace the step on so many devices that need not exist."""
    mesh = sharding.abstract_mesh(sharding.mesh_shape(cfg.mesh, devices))
    assert jax.tree.leaves(program.build(cfg, mesh).trace().out_info)


@pytest.mark.parametrize("file", files(*ALWAYS))
def test_the_first_override_is_taken_or_its_refusal_says_what_to_set(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    refused, total = Counter(), 0
    for source in variants(file):
        base = config_source.load(source).to_dict()
        for change in changes(resolved(base, [])):
            total += 1
            try:
                cfg = resolved(base, [change])
            except ConfigError as error:
                refused[change[0]] += 1
                cfg = resolved(base, cured(base, change, error))
            check_rates(cfg)
            assert change[0] not in ("train.steps", "train.global_batch_size", "optim.name") or not refused[change[0]]
    print(f"{file}: {sum(refused.values())} of {total} refused, each with what to set: {dict(refused)}")


@pytest.mark.parametrize(
    ("file", "every"),
    [("configs/quickstart.py", 4), *(pytest.param(name, 1, marks=pytest.mark.exhaustive) for name in FILES)],
)
def test_the_step_of_the_first_override_is_traced_or_its_refusal_says_what_to_set(file, every, monkeypatch):
    """On one device; where the mesh is changed, on two. `every`: of so many changes one is looked at."""
    monkeypatch.chdir(ROOT)
    base = config_source.load(variants(file)[0]).to_dict()
    traced = [change for change in changes(resolved(base, [])) if change[0] not in UNTRACED]
    for change in traced[::every]:
        try:
            cfg = resolved(base, [change])
        except ConfigError as error:
            cfg = resolved(base, cured(base, change, error))
        try:
            trace(cfg, 2 if change[0].startswith("mesh") else 1)
        except UserError as error:
            assert re.search(r"\b(set|take) ", str(error)), f"{change} is refused without a cure: {error}"
