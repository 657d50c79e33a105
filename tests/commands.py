"""Commands as a user types them, in processes of their own, on runs so small that starting is most of the time."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from bigjax.run.children import free_port
from bigjax.run.lock import LOCK
from bigjax.run.rows import read_rows

ROOT = Path(__file__).resolve().parent.parent
TIMINGS = ("time_s", "perf/tokens_per_s", "perf/data_wait_s", "perf/mfu", "perf/measured_peak_flops")

TINY = (
    "--config=configs/quickstart.py",
    "--config.data.tokenizer=bytes",
    "--config.model.vocab_size=256",
    "--config.model.num_layers=1",
    "--config.model.d_model=32",
    "--config.model.num_heads=2",
    "--config.data.seq_len=32",
    "--config.train.global_batch_size=8",
    "--config.train.steps=8",
    "--config.optim.warmup=1",
    "--config.optim.decay=2",
    "--config.train.loss_chunks=1",
    "--config.train.eval_every_steps=4",
    "--config.train.eval_batches=2",
    "--config.checkpoint.every_steps=4",
    "--config.log.every_steps=1",
    "--config.log.sample_tokens=0",
    "--config.log.plot=false",
    "--config.log.tensorboard=false",
)
"""The quickstart, shortened to 8 steps of a second in all; evaluations and checkpoints after steps 4 and 8.

What is left out, a sample and pictures, is half of the seconds that such a run takes.
"""

WHOLE = (*TINY, "--config.log.sample_tokens=8", "--config.log.plot=true", "--config.log.tensorboard=true")
"""The same with a sample and all the files that a run leaves by default."""


def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder where all the commands of this test session keep compiled programs and tokens."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "command-cache"
    folder.mkdir(exist_ok=True)
    return folder


class Commands:
    """Runs `python -m MODULE ARGUMENTS` from the root of the repository, with warnings as errors."""

    def __init__(self, cache: Path):
        self._cache = cache

    def start(
        self,
        module: str,
        *arguments: object,
        devices: int = 1,
        options: tuple[str, ...] = (),
        cwd: Path = ROOT,
        variables: Mapping[str, str] = MappingProxyType({}),
    ):
        """Start a command on `devices` virtual devices, with `options` of Python and environment `variables`."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "NPROC"))
        }
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(self._cache / "compiled"),
            "XDG_CACHE_HOME": str(self._cache),
            "PYTHONWARNINGS": "error",
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        return subprocess.Popen(
            [sys.executable, *options, "-m", module, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, *arguments: object, code: int = 0, **how) -> subprocess.CompletedProcess:
        """Run a command to its end, which must be exit status `code`."""
        return finish(self.start(module, *arguments, **how), code)

    def run_together(self, count: int, module: str, *arguments: object, devices: int) -> list:
        """Run `count` processes of one distributed run to their ends, each with `devices` devices."""
        distributed = [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={count}"]
        processes = [
            self.start(module, *arguments, *distributed, f"--process_id={index}", devices=devices)
            for index in range(count)
        ]
        try:
            return [finish(process, 0) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:  # one that failed must not leave the others waiting for it
                    process.kill()
                    process.communicate()


def finish(process: subprocess.Popen, code: int) -> subprocess.CompletedProcess:
    """Wait for a process, which must end with exit status `code`."""
    out, err = process.communicate()
    assert process.returncode == code, f"exit status {process.returncode}, not {code}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, code, out, err)


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """Mount something on a new folder `place` for a while; skip the test where this user may not."""
    place.mkdir()
    done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def rows(workdir: Path) -> list[dict]:
    """Return the rows of a run's metrics.jsonl without what depends on the clock."""
    found = read_rows(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in found]


def read(path: Path) -> dict:
    """Return a JSON file."""
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file in a folder by its path, but for a trainer's lock, which comes and goes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
