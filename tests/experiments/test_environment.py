"""Training where the machine is not as one would like it: no traceback, and a run all the same."""

import os
import subprocess
import sys

import pytest

from tests.commands import ROOT, WHOLE, Commands, mounted, read, shared_cache

HARD = {
    "no home, a plain locale, nobody else may read": ({"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, 0o077),
    "nothing can be kept of what is compiled": ({"JAX_COMPILATION_CACHE_DIR": "/dev/null/compiled"}, 0o022),
    "no cache folder at all": ({"XDG_CACHE_HOME": "/dev/null/cache"}, 0o022),
}


@pytest.mark.sample
@pytest.mark.parametrize(("variables", "umask"), HARD.values(), ids=HARD)
def test_a_run_in_a_hard_place(tmp_path_factory, tmp_path, variables, umask):
    cache = shared_cache(tmp_path_factory)
    environment = {
        "PATH": os.environ["PATH"],
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
    }
    environment |= {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled")} | variables
    if "XDG_CACHE_HOME" in variables:
        del environment["JAX_COMPILATION_CACHE_DIR"]
    workdir = tmp_path / "a run of mine, Zürich → 東京"
    flags = (f"--workdir={workdir}", f"--config.data.cache_dir={cache}/bigjax")
    command = [sys.executable, "-m", "experiments.train", *WHOLE, *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, umask=umask, capture_output=True)
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert "Warning" not in said
    assert read(workdir / "result.json")["steps"] == 8
    assert (workdir / "result.json").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_source_tree_that_nobody_can_write_to(tmp_path_factory, tmp_path):
    with mounted(tmp_path / "source", "--bind", "-o", "ro", str(ROOT)) as source:
        commands = Commands(shared_cache(tmp_path_factory))
        with pytest.raises(OSError, match="Read-only"):
            (source / "new").touch()
        where = {"cwd": source, "variables": {"PYTHONPATH": str(source)}}
        done = commands.run("experiments.train", *WHOLE, f"--workdir={tmp_path}/run", **where)
    assert "Traceback" not in done.stderr and read(tmp_path / "run" / "result.json")["steps"] == 8
