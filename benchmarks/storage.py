"""Save and restore in an object store, beside what the store itself can do, and what a save costs the steps.

    python -m benchmarks.storage --folder=s3://BUCKET/benchmark --megabytes=256

The raw speed is that of plain PUT and GET requests of the same objects, as many at once, over bare connections: it has
no retries and no digests. Each figure is the best of `--rounds`, taken in turns. Prints JSON: MB/s, the ratios,
seconds that `save` keeps the caller, and the median time of a matrix product alone and while a save is under way.
For an S3 server on this machine: python -m moto.server -p 5000, with AWS_ENDPOINT_URL=http://127.0.0.1:5000.
"""

import argparse
import json
import os
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.checkpoint import Checkpoints, blocks
from bigjax.checkpoint.reading import load_part
from bigjax.config import CheckpointConfig
from bigjax.paths import as_path, remove_tree


def raw(folder, data: bytes) -> tuple[float, float]:
    """Return bytes a second of bare PUT and GET requests of `data`, in objects as a checkpoint has."""
    import boto3
    from botocore.config import Config

    bucket, _, prefix = str(folder).removeprefix("s3://").partition("/")
    client = boto3.client("s3", config=Config(max_pool_connections=blocks.THREADS))
    parts = [data[at : at + blocks.OBJECT_BYTES] for at in range(0, len(data), blocks.OBJECT_BYTES)]
    keys = [f"{prefix}/raw/{number}" for number in range(len(parts))]
    with ThreadPoolExecutor(blocks.THREADS) as pool:
        start = time.perf_counter()
        list(pool.map(lambda key, part: client.put_object(Bucket=bucket, Key=key, Body=part), keys, parts))
        put = time.perf_counter() - start
        start = time.perf_counter()
        list(pool.map(lambda key: client.get_object(Bucket=bucket, Key=key)["Body"].read(), keys))
        got = time.perf_counter() - start
    return len(data) / put, len(data) / got


def steps(seconds: float, product, x) -> list[float]:
    """Return the times of matrix products for a while."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = as_path(arguments.folder) / uuid.uuid4().hex
    count = arguments.megabytes * 2**20 // 4
    rows = 64
    state = {"x": jax.random.normal(jax.random.key(0), (rows, count // rows), jnp.float32)}
    state["x"].block_until_ready()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    data, size = np.asarray(state["x"]).tobytes(), count * 4
    found: dict[str, list[float]] = {name: [] for name in ("put", "get", "save", "restore", "blocked_s")}
    product, matrix = jax.jit(lambda x: x @ x), jnp.ones((512, 512))
    product(matrix).block_until_ready()
    alone, beside = [], []
    try:
        for step in range(1, arguments.rounds + 1):
            put, got = raw(folder, data)
            with Checkpoints(folder / "checkpoints", CheckpointConfig(keep_last=arguments.rounds)) as checkpoints:
                checkpoints.resumable()
                start = time.perf_counter()
                checkpoints.save(step, state, {}, {})
                found["blocked_s"].append(time.perf_counter() - start)
                checkpoints.wait()
                found["save"].append(size / (time.perf_counter() - start))
                start = time.perf_counter()
                loaded = load_part(folder / "checkpoints" / str(step), abstract)
                loaded["x"].block_until_ready()
                found["restore"].append(size / (time.perf_counter() - start))
                assert bool((loaded["x"] == state["x"]).all())
                found["put"].append(put)
                found["get"].append(got)
        with Checkpoints(folder / "checkpoints", CheckpointConfig(keep_last=arguments.rounds)) as checkpoints:
            alone = steps(2.0, product, matrix)
            checkpoints.save(arguments.rounds + 1, state, {}, {})
            beside = steps(1.0, product, matrix)
    finally:
        remove_tree(folder)
    best = {name: max(values) for name, values in found.items() if name != "blocked_s"}
    print(
        json.dumps(
            {
                "megabytes": arguments.megabytes,
                "cores": len(os.sched_getaffinity(0)),
                **{f"{name}_mb_per_s": round(value / 1e6, 1) for name, value in best.items()},
                "save_to_put": round(best["save"] / best["put"], 3),
                "restore_to_get": round(best["restore"] / best["get"], 3),
                "save_keeps_caller_s": round(min(found["blocked_s"]), 4),
                "step_alone_ms": round(1e3 * statistics.median(alone), 2),
                "step_while_saving_ms": round(1e3 * statistics.median(beside), 2),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
