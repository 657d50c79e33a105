"""Eight virtual CPU devices for every test, set before JAX starts."""

import gc
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax.sharding import Mesh

from bigjax import sharding
from bigjax.config import MeshConfig
from bigjax.run import runtime
from tests import object_store

# Most programs here run once, on little: what a compiler could gain is less than it takes. Steps of other options, and
# those that commands in processes of their own compile, are as they were. XLA ends the process that gives it an option
# which it does not know, so the last, which takes half of the seconds, is for where it exists.
QUICKLY = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
QUICKLY += ["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []
os.environ["XLA_FLAGS"] = " ".join(QUICKLY)
jax.config.update("jax_num_cpu_devices", 8)
runtime.give_devices_threads(8)
jax.devices()  # has XLA read its flags
del os.environ["XLA_FLAGS"]


def pytest_collection_finish() -> None:
    """Look for garbage rarely, and not in what was imported: that was a tenth of the time of tracing programs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave all but the first cases of a test that is marked `sample` to `-m exhaustive`."""
    seen: Counter[str] = Counter()
    for item in items:
        if (marker := item.get_closest_marker("sample")) is None:
            continue
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        if seen[test] > (marker.args[0] if marker.args else 1):
            item.add_marker(pytest.mark.exhaustive)


def mesh_of(num_devices: int | None = None, **axes) -> tuple[MeshConfig, Mesh]:
    """Return a mesh config and its mesh over the first `num_devices` devices (default: all)."""
    cfg = MeshConfig(**axes)
    return cfg, sharding.make_mesh(cfg, jax.devices()[:num_devices])


@pytest.fixture(scope="session")
def store():
    """An S3 server on this machine, for all tests of this process."""
    with object_store.server() as running:
        yield running


@pytest.fixture
def bucket(store):
    """A new bucket, used by this process."""
    with object_store.used(store):
        yield store.bucket()


@pytest.fixture
def one_device():
    """A mesh of one device, set for the test."""
    _, mesh = mesh_of(1)
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture
def call_command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Call a command on a run in this process, whose settings stay; get exit status, stdout and stderr."""
    from experiments import cli

    monkeypatch.setattr(runtime, "configure_jax", lambda: None)

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        module, status = importlib.import_module(name), 0
        capsys.readouterr()
        try:
            cli.main(
                module.main,
                doc=module.__doc__ or "",
                define_flags=module.define_flags,
                examples=module.EXAMPLES,
                config_of_run=True,
                argv=[name.rpartition(".")[2], *map(str, arguments)],
            )
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def call_check(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Call `experiments.check` in this process, from the root of the repository; get exit status, stdout and stderr."""
    from experiments.check import __main__ as check

    monkeypatch.chdir(Path(__file__).parent.parent)

    def run(*arguments: object) -> tuple[int, str, str]:
        argv = ["check", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            check.main(argv)
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
