"""Speed of preparations beside datatrove's: `python -m benchmarks.prepare --poetry=DIR ...` prints one line of JSON.

The corpora, each optional: Chinese poetry (`dist/` of the npm package chinese-poetry), the kernel's documentation
(`Documentation/` of the Debian package linux-doc) and an English dictionary (`gcide.dict.dz` of dict-gcide). Each
becomes JSON lines, which one process takes through repair, both of Gopher's filters and near duplicates: all of it by
`bigjax.prepare`, and `--limit_mb` of it by it and by datatrove's reader, blocks, MinHash and writer: `datatrove` with
its own tokenizer of English, if spaCy is installed, `datatrove-words` with that of `bigjax.prepare.words`. Its own of
Chinese is left out: its executor cannot copy a MinHash block that has it. Figures are megabytes of text a second of one
core; `kept` is the share of records.
"""

import argparse
import contextlib
import gzip
import importlib.util
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigjax.prepare import pipeline, reading, running, words
from experiments import prepare as command

STEPS = ("unicode", "gopher_repetition", "gopher_quality", "near_duplicates")

CHINESE = {"min_words": 20, "min_word_length": 1.0, "min_stop_words": 0}
"""Gopher's limits for poems in Chinese, where each letter is a word."""


def poetry(folder: Path) -> Iterator[str]:
    """Yield the poems."""
    for path in sorted(folder.rglob("*.json")):
        found = json.loads(path.read_text())
        for poem in found if isinstance(found, list) else []:
            lines = poem.get("paragraphs") if isinstance(poem, dict) else None
            if lines and all(isinstance(line, str) for line in lines):
                yield "\n".join(lines)


def kernel(folder: Path) -> Iterator[str]:
    """Yield the pages of the documentation."""
    for path in sorted(folder.rglob("*.rst*")):
        content = path.read_bytes()
        yield (gzip.decompress(content) if path.suffix == ".gz" else content).decode(errors="replace")


def dictionary(file: Path) -> Iterator[str]:
    """Yield the entries, which begin at the first column."""
    yield from re.split(r"\n(?=\S)", gzip.decompress(file.read_bytes()).decode(errors="replace"))


def write(texts: Iterator[str], path: Path, limit: float) -> float:
    """Write texts as JSON lines up to so many megabytes; return how many there are."""
    nbytes = 0
    with path.open("w") as file:
        for i, text in enumerate(texts):
            if not text.strip():
                continue
            file.write(json.dumps({"text": text, "id": str(i)}, ensure_ascii=False) + "\n")
            nbytes += len(text.encode())
            if nbytes > limit * 1e6:
                break
    return nbytes / 1e6


def ours(path: Path, quality: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Return the seconds of our preparation and the share of records that it kept."""
    cfg = pipeline.resolved(pipeline.declare(sources=(f"jsonl:{path}",), steps=STEPS, gopher_quality=quality))
    shards = tuple(reading.shards([("jsonl", path)], 64 * 10**6))
    started = time.process_time()
    steps = running.run(
        running.Job(cfg, shards, command.readers(), folder), 1, lambda line: print(line, file=sys.stderr)
    )
    return time.process_time() - started, steps[-1]["kept"] / steps[0]["records"]


def datatrove(path: Path, quality: dict[str, Any], language: Any, folder: Path) -> tuple[float, float]:
    """Return the seconds of datatrove's blocks and the share of records that they kept."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import dedup, filters, formatters
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    limits = {"min_doc_words": quality.get("min_words", 50), "min_avg_word_length": quality.get("min_word_length", 3.0)}
    limits["min_stop_words"] = quality.get("min_stop_words", 2)
    minhash, names = (
        dedup.MinhashConfig(),
        [str(folder / name) for name in ("filtered", "sig", "dups", "remove", "out")],
    )
    filtered, signatures, pairs, removed, out = names
    reader = lambda: JsonlReader(filtered, compression=None)  # noqa: E731
    writer = lambda name: JsonlWriter(name, compression=None, output_filename="${rank}.jsonl")  # noqa: E731
    stages = [
        [
            JsonlReader(str(path.parent), glob_pattern=path.name, compression=None),
            formatters.FTFYFormatter(),
            filters.GopherRepetitionFilter(language=language),
            filters.GopherQualityFilter(language=language, **limits),
            writer(filtered),
        ],
        [reader(), dedup.MinhashDedupSignature(signatures, minhash, language=language)],
        [dedup.MinhashDedupBuckets(signatures, pairs, config=minhash)],
        [dedup.MinhashDedupCluster(pairs, removed, config=minhash)],
        [reader(), dedup.MinhashDedupFilter(removed), writer(out)],
    ]
    started = time.process_time()
    for i, stage in enumerate(stages):
        if i and not list(Path(filtered).glob("*.jsonl")):
            break  # the filters kept nothing
        tasks = minhash.num_buckets if i == 2 else 1
        LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=str(folder / f"log{i}")).run()
    seconds = time.process_time() - started
    count = lambda file: sum(1 for _ in file.open("rb")) if file.exists() else 0  # noqa: E731
    return seconds, count(Path(out, "00000.jsonl")) / count(path)


def figures(name: str, texts: Iterator[str], quality: dict[str, Any], limit: float, own: bool) -> dict[str, float]:
    """Return the figures of one corpus."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole, part = folder / "whole.jsonl", folder / "part.jsonl"
        megabytes = write(texts, whole, float("inf"))
        lines = (json.loads(line)["text"] for line in whole.open())
        less = write(lines, part, limit)
        found[f"{name}/MB"] = megabytes
        runs: dict[str, tuple[float, Any]] = {
            "part": (less, lambda: ours(part, quality, folder / "a")),
            "datatrove-words": (less, lambda: datatrove(part, quality, words.tokenizer(), folder / "b")),
            "datatrove": (less, lambda: datatrove(part, quality, "eng", folder / "c")),
            "whole": (megabytes, lambda: ours(whole, quality, folder / "d")),
        }
        if not own or not importlib.util.find_spec("spacy"):
            del runs["datatrove"]
        for run, (size, work) in runs.items():
            seconds, kept = work()
            found |= {f"{name}/{run}/MB_per_s": size / seconds, f"{name}/{run}/kept": kept}
            print(json.dumps(found), file=sys.stderr)
    return found


def main() -> None:
    """Print the figures of the corpora that were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("poetry", "kernel", "dictionary"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--limit_mb", type=float, default=5.0)
    given = parser.parse_args()
    found: dict[str, float] = {}
    with contextlib.suppress(ModuleNotFoundError):
        from loguru import logger

        logger.remove()
    if given.poetry:
        found |= figures("poetry", poetry(given.poetry), CHINESE, given.limit_mb, own=False)
    if given.kernel:
        found |= figures("kernel", kernel(given.kernel), {}, given.limit_mb, own=True)
    if given.dictionary:
        found |= figures("dictionary", dictionary(given.dictionary), {"min_words": 20}, given.limit_mb, own=True)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
