"""Corpora of any size: `python -m benchmarks.corpora start|tokenize` prints one line of JSON.

- `start`: what a run does about its data before the first step, on 10^12 tokens in 10^5 sparse shards with a manifest:
  seconds of each part, and how much more memory the process has than before, in MB; the same for 10^10 tokens in as
  many shards, and for 10^3 shards.
- `tokenize`: `experiments.tokenize` with a byte-pair tokenizer on JSON lines of the packaged corpus, by one worker and
  by one a core, in MB of text a second of wall time, and of CPU time, which other work on the machine changes less; and
  what the library `tokenizers` makes of the same texts in one batch on as many cores, which writes nothing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bigjax import data
from bigjax.config import Config, strict
from bigjax.data.sources import shakespeare
from bigjax.data.stored import manifest, places
from bigjax.data.tokens.bpe import train_bpe
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


def tokenize_figures(copies: int) -> dict[str, float]:
    """Time the command and the library on the same texts."""
    texts = [part for _, text in shakespeare.works() for part in text.split("\n\n") if part.strip()] * copies
    megabytes, cores = sum(len(text.encode()) for text in texts) / 1e6, len(os.sched_getaffinity(0))
    figures: dict[str, float] = {"MB": megabytes, "cores": cores}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bpe").mkdir()
        train_bpe([text for _, text in shakespeare.works()], 8192, folder / "bpe")
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        size = (folder / "texts.jsonl").stat().st_size / 1e6
        how = [
            f"--source=jsonl:{folder}/texts.jsonl",
            f"--tokenizer=hf:{folder}/bpe",
            f"--part_mb={size / (4 * cores)}",
        ]
        for workers in (1, cores):
            command = [sys.executable, "-m", "experiments.tokenize", *how, f"--out={folder}/{workers}"]
            _measure(figures, f"{workers} workers", [*command, f"--workers={workers}"], megabytes)
        command = [sys.executable, "-m", "benchmarks.corpora", "library", f"--folder={folder}"]
        _measure(figures, "library", command, megabytes)
    return figures


def _measure(figures: dict[str, float], name: str, command: list[str], megabytes: float) -> None:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures |= {f"{name}, MB a wall second": megabytes / wall, f"{name}, MB a CPU second": megabytes / cpu}


def library(folder: Path) -> None:
    """Encode the texts in one batch, as `tokenize_figures` times it."""
    from tokenizers import Tokenizer

    with (folder / "texts.jsonl").open() as file:
        texts = [json.loads(line)["text"] for line in file]
    Tokenizer.from_file(str(folder / "bpe/tokenizer.json")).encode_batch_fast(texts, add_special_tokens=False)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure corpora of any size; one line of JSON.")
    parser.add_argument("what", choices=("start", "tokenize", "library"))
    parser.add_argument("--folder", help="of a corpus that is there: time one start on it")
    parser.add_argument("--copies", type=int, default=20, help="of the packaged corpus of 5 MB, to be tokenised")
    given = parser.parse_args()
    if given.what == "library":
        library(Path(given.folder))
        return
    if given.what == "tokenize":
        found = tokenize_figures(given.copies)
    else:
        found = start_once(Path(given.folder)) if given.folder else start_figures()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
