"""Tokenise the files of a source into shards, in all cores of this machine and of all that run the same command.

The shards are in Megatron's format, --out/train and, with --holdout, --out/eval. Train on them with
--config.data.sources='tokens:OUT/train/*.bin'. Each worker takes one part of the files after the other, by lease, so
that machines that share the folder share the work. After a kill the same command goes on: parts that are finished stay
as they are. The shards are the same bytes for any number of workers.

With --source=tokens:GLOB it writes the manifest of shards that are there, which else the first run on them does.

Exit status: 0 finished; 1 a bug; 2 bad input; 130 after Ctrl-C.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from absl import flags

from bigjax.errors import UserError

from . import cli

EXAMPLES = (
    "python -m experiments.tokenize --source='jsonl:corpus/*.jsonl' --tokenizer=hf:gpt2 --out=shards",
    "python -m experiments.tokenize --source='text:corpus/*.txt' --tokenizer=bpe:8192 --out=shards --holdout=0.01",
    "python -m experiments.tokenize --source='tokens:shards/*.bin'",
)

WORK = ".work"
"""The folder in --out with a file for each part that is finished, and those of the workers that have one."""

EVERY_S = 1.0
"""Seconds between looks at what others have done, and between lines of progress on a terminal."""


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("source", None, "what to tokenise: text:GLOB, jsonl:GLOB and so on", flag_values=flag_values)
    flags.DEFINE_string("tokenizer", None, "bytes, bpe:SIZE or hf:PATH, as data.tokenizer", flag_values=flag_values)
    flags.DEFINE_string("out", None, "the folder to write", flag_values=flag_values)
    flags.DEFINE_string("text_key", "text", "the column with the text", flag_values=flag_values)
    flags.DEFINE_float(
        "holdout", 0.0, "the share of documents for --out/eval, as data.holdout", flag_values=flag_values
    )
    flags.DEFINE_float("part_mb", 64.0, "the files of a shard, in 1e6 bytes", flag_values=flag_values)
    flags.DEFINE_integer("workers", 0, "processes on this machine; 0 is one a core", flag_values=flag_values)
    flags.DEFINE_bool("worker", False, "be one of those processes: the command starts them", flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> int:
    """Make the plan, start the workers, say how it goes, and write the manifests."""
    source = cli.required(flag_values, "source")
    if source.startswith("tokens:"):
        return _manifest(source)
    tokenizer, out = cli.required(flag_values, "tokenizer"), cli.required(flag_values, "out")
    if not 0 <= flag_values.holdout < 1:
        raise UserError(f"--holdout={flag_values.holdout} is no share: give one of at least 0 and below 1")
    if "://" in out:
        raise UserError(f"--out={out!r} is not on a disk: write to one, and copy the folder with the store's own tools")
    if flag_values.worker:
        return _work(Path(out), source, flag_values)
    work = Path(out) / WORK
    total, count = _plan(Path(out), source, tokenizer, flag_values)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command = [sys.executable, "-m", __spec__.name, "--worker"]
    given = {"source": source, "tokenizer": tokenizer, "out": out}
    given |= {name: flag_values[name].value for name in ("text_key", "holdout", "part_mb")}
    command += [f"--{name}={value}" for name, value in given.items()]
    workers = min(flag_values.workers or cores, count)
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(workers)
    ]
    try:
        _wait(started, work, total, count)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
    from bigjax.data.tokens import parts

    rows = [json.loads((work / f"{number:06}.json").read_text())["rows"] for number in range(count)]
    sizes = parts.write_manifests(Path(out), rows)
    for side, (documents, tokens) in sizes.items():
        if documents:
            print(f"{out}/{side}: {documents:,} documents, {tokens:,} tokens")
    if flag_values.holdout and not sizes["eval"][0]:
        print(
            f"note: --holdout={flag_values.holdout:g} held out none of {sizes['train'][0]:,} documents, each of which "
            "falls to one side by its hash: data.holdout of a run holds out the end of the tokens instead",
            file=sys.stderr,
        )
    return 0


def _part_bytes(flag_values: flags.FlagValues) -> int:
    return max(int(flag_values.part_mb * 1e6), 1)


def _manifest(source: str) -> int:
    from bigjax.data.stored.corpus import open_corpus
    from bigjax.data.tokens.cache import cache_folder

    progress = Progress(0)
    corpus = open_corpus(source.removeprefix("tokens:"), cache_folder(None), progress.add)
    progress.end()
    print(f"{len(corpus):,} tokens in {corpus.shards:,} shards, largest id {corpus.max_id:,}")
    return 0


def _plan(out: Path, source: str, tokenizer: str, flag_values: flags.FlagValues) -> tuple[int, int]:
    """Write what is to be done, or find that it is there; return the bytes of the files and the number of parts.

    Raises:
      UserError: the folder holds the tokens of something else.
    """
    from bigjax.data.tokens import parts
    from bigjax.run import lease
    from bigjax.run.json_files import reading, write_json

    found, work = parts.parts_of(source, _part_bytes(flag_values)), out / WORK
    for folder in (work, *(out / side for side in parts.SIDES)):
        folder.mkdir(parents=True, exist_ok=True)
    place, lock = work / "plan.json", work / "plan.lock"
    how = (source, flag_values.text_key, flag_values.holdout)
    while not place.is_file():
        try:  # of several machines one makes the tokenizer
            owner, _ = lease.take(lock)
        except lease.Taken:
            time.sleep(EVERY_S)
            continue
        with lease.renewed([lock]):
            if not place.is_file():
                made = _tokenizer(tokenizer, source, flag_values.text_key, out)
                write_json(place, parts.described(*how, made, found))
        lease.release(lock, owner)
    with reading(place):
        before = json.loads(place.read_text())
        now = parts.described(*how, _tokenizer(tokenizer, source, flag_values.text_key, None), found)
        other = ", ".join(name for name in now if now[name] != before[name])
    if other:
        raise UserError(f"{out} holds the tokens of something else ({other}): choose another --out")
    return sum(piece.stop - piece.start for part in found for piece in part), len(found)


def _tokenizer(spec: str, source: str, text_key: str, out: Path | None) -> str:
    """Return what tells a tokenizer from others; with `out` train it, if it is one that is trained, and save it."""
    from bigjax.data.sources.opening import SplitSource, open_source
    from bigjax.data.tokens.bpe import build_tokenizer
    from bigjax.data.tokens.cache import cache_folder
    from bigjax.data.tokens.tokenizers import save_tokenizer

    trained, root = spec.startswith("bpe:"), cache_folder(None)
    if trained and out is None:
        return spec
    sides = [SplitSource(open_source(source, text_key, root), "train", "all")] if trained else []
    made = build_tokenizer(spec, sides, root)
    if out is not None:
        save_tokenizer(made, out)
    return spec if trained else made.digest


def _work(out: Path, source: str, flag_values: flags.FlagValues) -> int:
    """Take parts until all are finished, whoever finished them; print the bytes of each batch."""
    from bigjax.data.tokens import parts
    from bigjax.data.tokens.tokenizers import load_tokenizer
    from bigjax.run import lease
    from bigjax.run.json_files import write_json

    found, tokenizer, work = parts.parts_of(source, _part_bytes(flag_values)), load_tokenizer(out), out / WORK
    kind, how = source.partition(":")[0], (flag_values.text_key, flag_values.holdout)
    told = Told()
    waiting = list(range(len(found)))
    while waiting:
        held_by_others = []
        for number in waiting:
            done, lock = work / f"{number:06}.json", work / f"{number:06}.lock"
            if done.is_file():
                continue
            try:
                owner, _ = lease.take(lock)
            except lease.Taken:
                held_by_others.append(number)
                continue
            with lease.renewed([lock]):
                if not done.is_file():
                    rows = parts.write_part(out, number, kind, found[number], tokenizer, *how, told.add)
                    write_json(done, {"rows": rows, "bytes": sum(piece.stop - piece.start for piece in found[number])})
            lease.release(lock, owner)
        waiting = held_by_others
        if waiting:
            time.sleep(EVERY_S)
    told.end()
    return 0


class Told:
    """Prints how many bytes a worker has tokenised, not too often."""

    def __init__(self):
        self._bytes, self._last = 0, time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes."""
        self._bytes += count
        if time.monotonic() - self._last > EVERY_S / 2:
            self.end()

    def end(self) -> None:
        """Print what has been counted."""
        print(self._bytes, flush=True)
        self._bytes, self._last = 0, time.monotonic()


class Progress:
    """A line on stderr: live on a terminal, every half a minute in a file.

    Args:
      total: bytes, 0 where nobody knows. done: those of earlier starts.
    """

    def __init__(self, total: int, done: int = 0):
        self._total, self._done, self._now = total, done, 0
        self._start = self._last = time.monotonic()
        self._every, self._lock = EVERY_S if sys.stderr.isatty() else 30.0, threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that were done just now."""
        with self._lock:
            self._now += count
            if time.monotonic() - self._last >= self._every:
                self._last = time.monotonic()
                self._show("\r" if sys.stderr.isatty() else "\n")

    def end(self) -> None:
        """Say the last line."""
        self._show("\n")

    def _show(self, end: str) -> None:
        from bigjax.run.console import duration

        rate = self._now / max(time.monotonic() - self._start, 1e-9)
        left = (self._total - self._done - self._now) / rate if rate and self._total else 0.0
        of = f" of {self._total / 1e6:,.1f}" if self._total else ""
        said = f"{(self._done + self._now) / 1e6:,.1f}{of} MB  {rate / 1e6:,.1f} MB/s"
        print(f"{said}  left {duration(max(left, 0.0))}" if left > 0 else said, end=end, file=sys.stderr, flush=True)


def _wait(started: list[subprocess.Popen], work: Path, total: int, count: int) -> None:
    """Wait for workers, and show their progress.

    Raises:
      UserError: one of them met bad input.
    """
    before = [work / f"{number:06}.json" for number in range(count)]
    done = sum(json.loads(place.read_text())["bytes"] for place in before if place.is_file())
    progress, said = Progress(total, done), [""] * len(started)

    def read(pipe: IO[str]) -> None:
        for line in pipe:
            progress.add(int(line))

    def keep(index: int, pipe: IO[str]) -> None:
        said[index] = pipe.read()

    threads: list[Any] = []
    for index, process in enumerate(started):
        assert process.stdout and process.stderr
        threads.append(threading.Thread(target=read, args=(process.stdout,), daemon=True))
        threads.append(threading.Thread(target=keep, args=(index, process.stderr), daemon=True))
    for thread in threads:
        thread.start()
    while any(process.poll() is None for process in started):
        if any(process.poll() for process in started):
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            next(process for process in started if process.poll() is None).wait(0.1)
    if failed := [index for index, process in enumerate(started) if process.poll()]:
        threads[2 * failed[0] + 1].join(5)
        status, text = started[failed[0]].returncode, said[failed[0]]
        if status == UserError.exit_code:
            raise UserError(text.rpartition("error: ")[2].strip())
        raise RuntimeError(f"a worker ended with status {status}: {text[-2000:]}")
    for thread in threads:
        thread.join()
    progress.end()


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config=False)
