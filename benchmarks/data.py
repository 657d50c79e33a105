"""Speed of the data pipeline: `python -m benchmarks.data` prints one line of JSON.

- `tokenize/*`: the packaged corpus (5.06 MB) through `encode_batch`, in million tokens and million bytes a second.
- `loader/*`: batches of (batch, sequence) in million tokens a second, over 64 million random tokens in documents of 500
  on average: `single` takes `stream.batch(t)` one after the other, `prefetch` reads them through `stream.batches`,
  `mixture` draws from two sources, `whole` keeps no document mask.

Every figure is the median of the runs; their number is in the output.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bigjax.data.batches.order import build_order
from bigjax.data.batches.stream import TrainStream
from bigjax.data.rows.packed import PackedText
from bigjax.data.sources import shakespeare
from bigjax.data.tokens.bpe import train_bpe
from bigjax.data.tokens.shards import Shard
from bigjax.data.tokens.tokenizers import ByteTokenizer, load_tokenizer

SHAPES = ((16, 256), (64, 1024), (512, 1024), (8, 8192))


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """Return the median time of `work`, after one run to warm up."""
    work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def tokenizer_figures(runs: int) -> dict[str, float]:
    """Time both tokenizers on the packaged corpus."""
    texts = [text for _, text in shakespeare.works()]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        train_bpe(texts, 8192, Path(folder))
        bpe = load_tokenizer(folder)
    figures = {}
    for name, tokenizer in (("bytes", ByteTokenizer()), ("bpe:8192", bpe)):
        millions = sum(len(ids) for ids in tokenizer.encode_batch(texts)) / 1e6
        seconds = median_seconds(lambda tokenizer=tokenizer: tokenizer.encode_batch(texts), runs)
        figures[f"tokenize/{name}/Mtokens_per_s"] = millions / seconds
        figures[f"tokenize/{name}/Mbytes_per_s"] = megabytes / seconds
    return figures


def random_shard(num_tokens: int, seed: int) -> Shard:
    """Make a shard in memory, of documents of 500 tokens on average."""
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.choice(num_tokens - 1, num_tokens // 500, replace=False)) + 1
    offsets = np.concatenate([[0], starts, [num_tokens]]).astype(np.int64)
    return Shard(Path(), rng.integers(0, 50_000, num_tokens, np.uint16), offsets, 0, "")


def random_stream(shards: tuple[Shard, ...], batch: int, seq_len: int, document_mask: bool = True) -> TrainStream:
    """Make a stream of whole batches over shards."""
    rows = tuple(PackedText("random", shard, seq_len, document_mask) for shard in shards)
    return TrainStream(rows, build_order(list(map(len, rows)), (), 0), 0, slice(0, batch), batch, seq_len, 4)


def loader_figures(runs: int) -> dict[str, float]:
    """Time batches of several shapes."""
    one, two = (random_shard(64_000_000, 0),), (random_shard(32_000_000, 1), random_shard(32_000_000, 2))
    figures = {}
    for batch, seq_len in SHAPES:
        steps = max(4, 2_000_000 // (batch * seq_len))
        millions = steps * batch * seq_len / 1e6
        stream = random_stream(one, batch, seq_len)

        def prefetched(stream: TrainStream = stream, steps: int = steps) -> None:
            with stream.batches(0) as batches:
                for _ in range(steps):
                    next(batches)

        def single(stream: TrainStream, steps: int = steps) -> None:
            for step in range(steps):
                stream.batch(step)

        mixture, whole = random_stream(two, batch, seq_len), random_stream(one, batch, seq_len, document_mask=False)
        work = {
            "single": lambda stream=stream: single(stream),
            "prefetch": prefetched,
            "mixture": lambda stream=mixture: single(stream),
            "whole": lambda stream=whole: single(stream),
        }
        for name, function in work.items():
            figures[f"loader/{batch}x{seq_len}/{name}/Mtokens_per_s"] = millions / median_seconds(function, runs)
    return figures


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure the data pipeline; one line of JSON.")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each figure")
    runs = parser.parse_args().runs
    figures = tokenizer_figures(runs) | loader_figures(runs)
    print(
        json.dumps({"runs": runs, "cpus": os.cpu_count()} | {name: round(value, 2) for name, value in figures.items()})
    )


if __name__ == "__main__":
    main()
