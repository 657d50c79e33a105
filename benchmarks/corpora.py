"""Corpora of any size: `python -m benchmarks.corpora start|tokenize|order` prints one line of JSON.

- `start`: what a run does about its data before the first step, on 10^12 tokens in 10^5 sparse shards with a manifest:
  seconds of each part, and how much more memory the process has than before, in MB; the same for 10^10 tokens in as
  many shards, and for 10^3 shards.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bigjax import data
from bigjax.config import Config, strict
from bigjax.data.stored import manifest, places
from bigjax.run import identity


def sparse_corpus(folder: Path, shards: int, tokens: int) -> None:
    """Make shards of ids 0 of which the disk holds nothing, and their manifest, as reading them all would."""
    for number in range(shards):
        with (folder / f"{number:06}.bin").open("wb") as file:
            file.truncate(2 * tokens)
    names = np.array([f"{number:06}.bin".encode() for number in range(shards)])
    rows = np.repeat(manifest.read_shard(folder / "000000.bin", folder), shards)
    for column, values in zip(manifest.STAMP, places.stamps(folder, names).T, strict=True):
        rows[column] = values
    manifest.write(folder / manifest.NAME, names, rows)


def config_of(folder: Path) -> Config:
    """Return a run on the shards of a folder, all of which are trained on."""
    fields = {"sources": [f"tokens:{folder}/*.bin"], "tokenizer": "bytes", "seq_len": 1024, "holdout": 0.0}
    mapping = {"model": {"vocab_size": 256, "max_seq_len": 1024}, "data": {**fields, "cache_dir": f"{folder}/cache"}}
    return strict.from_dict(Config, mapping | {"train": {"global_batch_size": 64}})


def start_once(folder: Path) -> dict[str, float]:
    """Time the parts of a start in this process, and what memory they take."""
    cfg = config_of(folder)
    # What imports take is not the corpus's.
    data.build(strict.from_dict(Config, {}), slice(0, 16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    identity.fingerprint(cfg)
    identified = time.perf_counter()
    text = data.build(cfg, slice(0, 64))
    built = time.perf_counter()
    text.train.batch(0)
    batch = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = ("identity_s", "build_s", "first_batch_s")
    parts = np.diff([start, identified, built, batch]).tolist()
    return dict(zip(names, parts, strict=True)) | {"total_s": batch - start, "more_memory_mb": (after - before) / 1024}


def start_figures() -> dict[str, dict[str, float]]:
    """Time a start on corpora of several sizes, each in a process of its own."""
    figures = {}
    for shards, tokens in ((10**5, 10**7), (10**5, 10**5), (10**3, 10**7)):
        with tempfile.TemporaryDirectory() as name:
            sparse_corpus(Path(name), shards, tokens)
            command = [sys.executable, "-m", "benchmarks.corpora", "start", f"--folder={name}"]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures[f"{shards * tokens:.0e} tokens in {shards:,} shards"] = json.loads(said)
    return figures


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure corpora of any size; one line of JSON.")
    parser.add_argument("what", choices=("start",))
    parser.add_argument("--folder", help="of a corpus that is there: time one start on it")
    given = parser.parse_args()
    found = start_once(Path(given.folder)) if given.folder else start_figures()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
