"""What checkpoints cost: `python -m benchmarks.checkpoint --workload=w1` prints one line of JSON.

- `blocked_s`: what an asynchronous save adds to the steps of a run: the time of the call, `call_s`, and by how much the
  steps that run while it is written take longer than others. `blocked_fraction`: of an interval of 60 s between saves.
- `save_s`, `restore_s`: a save and a restore that are waited for, digests included: a save reads back what it wrote,
  and a restore reads every byte twice.
- `disk_write_s`, `disk_read_s`: a file of as many bytes written and synced, and read. Before anything is read the
  system is asked to drop it from memory.
- `save_to_disk`, `restore_to_disk`: medians of the ratios of the two.

Every figure is the median of the turns, in each of which all are measured once.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.workloads import workload

INTERVAL_S = 60.0

CHUNK = 2**24


def main() -> None:
    """Read the command line, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=("w1", "w2"), default="w1")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", help="where to write; by default the folder for temporary files")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    from bigjax.run import runtime

    runtime.configure_jax()
    from benchmarks.trainer import Trainer

    trainer = Trainer(workload(args.workload, 1000))
    trainer.advance()
    turns = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        one_turn(trainer, Path(folder, "warm-up"))
        for turn in range(args.turns):
            turns.append(one_turn(trainer, Path(folder, str(turn))))
    figures = {name: statistics.median(found[name] for found in turns) for name in turns[0]}
    print(
        json.dumps(
            {"workload": args.workload, "turns": args.turns, "cpus": os.cpu_count()}
            | {name: int(value) if name == "bytes" else round(value, 4) for name, value in figures.items()}
        )
    )


def one_turn(trainer, folder: Path) -> dict[str, float]:
    """Measure everything once, in a new folder."""
    from bigjax.checkpoint.saving import Checkpoints
    from bigjax.config import CheckpointConfig

    folder.mkdir()
    call, blocked = _blocked(trainer, folder / "asynchronous")
    with Checkpoints(folder / "waited", CheckpointConfig(asynchronous=False)) as checkpoints:
        save = seconds(lambda: checkpoints.save(1, trainer.state, {}, {}))
        size = sum(path.stat().st_size for path in (folder / "waited").rglob("*") if path.is_file())
        disk_write = seconds(lambda: write(folder / "file", size))
        drop(folder)
        restore = seconds(lambda: checkpoints.restore(trainer.abstract))
    disk_read = seconds(lambda: read(folder / "file"))
    return {
        "bytes": size,
        "call_s": call,
        "blocked_s": blocked,
        "blocked_fraction": blocked / INTERVAL_S,
        "save_s": save,
        "restore_s": restore,
        "disk_write_s": disk_write,
        "disk_read_s": disk_read,
        "save_to_disk": save / disk_write,
        "restore_to_disk": restore / disk_read,
    }


def _blocked(trainer, folder: Path) -> tuple[float, float]:
    """Return the seconds of the call of an asynchronous save, and all that it adds to the steps until it is done."""
    from bigjax.checkpoint.saving import Checkpoints
    from bigjax.config import CheckpointConfig

    undisturbed = [seconds(trainer.advance) for _ in range(3)]
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        call = seconds(lambda: checkpoints.save(1, trainer.state, {}, {}))
        meanwhile = [seconds(trainer.advance)]
        while not checkpoints.steps():
            meanwhile.append(seconds(trainer.advance))
    return call, call + sum(meanwhile) - len(meanwhile) * statistics.median(undisturbed)


def write(path: Path, size: int) -> None:
    """Write `size` bytes that do not compress, and wait until they are on the disk."""
    chunk = os.urandom(CHUNK)
    with path.open("wb") as file:
        for start in range(0, size, CHUNK):
            file.write(chunk[: size - start])
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> None:
    """Read a file."""
    with path.open("rb", buffering=0) as file:
        while file.read(CHUNK):
            pass


def drop(folder: Path) -> None:
    """Ask the system to forget what it holds in memory of the files in a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not on the disk yet cannot be forgotten
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
