"""A preparation carried out: in stages, by worker processes, resumable after a kill.

A stage reads shards, takes every record through its steps and writes it down. It ends where a `Fitted` step comes,
which observes what was written; when all shards are done one process combines what was observed, and the next stage
begins with that step. A shard of a stage is done when its counts lie in `work/`, written last, so a killed command
goes on with those that are missing. What is written depends on the sources and the config, not on workers or kills.
"""

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigjax.errors import UserError, named
from bigjax.prepare import writing
from bigjax.prepare.counting import Counts, added, bucket, size
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.pipeline import Preparation
from bigjax.prepare.reading import Reader, Shard, digests, read
from bigjax.prepare.step import Arrays, Dropped, Fitted, Record, Step

SHARD_BITS = 32
"""A record's place is its shard and, in as many bits, its number in it."""


@dataclass(frozen=True)
class Stage:
    """Steps between two that must see all records: `first` is fitted, `then` are not, `observed` is fitted next."""

    first: tuple[str, Fitted] | None
    then: tuple[tuple[str, Step], ...]
    observed: tuple[str, Fitted] | None


@dataclass(frozen=True)
class Job:
    """All that a worker needs to do a shard of a stage."""

    cfg: Preparation
    shards: tuple[Shard, ...]
    readers: Mapping[str, Reader]
    out: Path


def stages(cfg: Preparation) -> list[Stage]:
    """Return the stages of a preparation, in order."""
    found: list[Stage] = []
    first, then = None, []
    for name, step in cfg.loaded():
        if isinstance(step, Step):
            then.append((name, step))
        else:
            found.append(Stage(first, tuple(then), (name, step)))
            first, then = (name, step), []
    return [*found, Stage(first, tuple(then), None)]


def check(cfg: Preparation) -> None:
    """Make every step once, so that what it lacks is said before any record is read.

    Raises:
      UserError: a step needs a package, a file or an option that is not there.
    """
    for name, step in cfg.loaded():
        options = cfg.options(name)
        _guard(name, "before the first record", step.build if isinstance(step, Step) else step.observe, options, cfg)


def run(job: Job, workers: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Do all stages and return the counts of each step: `{"step", "records", "bytes", "kept", "dropped", ...}`.

    Args:
      workers: processes; with 1 this one does the work.
      say: told a line a stage.

    Raises:
      PrepareError: records or a step do not allow it, or a worker was killed.
    """
    found: list[dict[str, Any]] = []
    every = stages(job.cfg)
    for number, stage in enumerate(every):
        writing.counts_path(job.out, number, 0).parent.mkdir(parents=True, exist_ok=True)
        waiting = [i for i in range(len(job.shards)) if not writing.counts_path(job.out, number, i).is_file()]
        started = time.monotonic()
        for done in _each(job, number, waiting, workers):
            del done
        counts = [json.loads(writing.counts_path(job.out, number, i).read_text()) for i in range(len(job.shards))]
        names = [name for name, _ in ((stage.first,) if stage.first else ()) + stage.then]
        for at, name in enumerate(names):
            found.append({"step": name, **added((part["steps"][at] for part in counts), job.cfg.examples)})
        if stage.observed and not (state := writing.state_path(job.out, stage.observed[0])).is_file():
            name, step = stage.observed
            observed = [writing.load(writing.observed_path(job.out, number, i)) for i in range(len(job.shards))]
            writing.save(state, step.combine(observed, job.cfg.options(name), job.cfg))
        seconds = time.monotonic() - started
        read_bytes = sum(part["read_bytes"] for part in counts)
        say(
            f"stage {number + 1} of {len(every)} ({', '.join(names) or 'reading'}): {seconds:.1f} s, "
            f"{read_bytes / 1e6:.1f} MB in {len(job.shards)} shards, {len(job.shards) - len(waiting)} done before"
        )
        if number:
            writing.clear(writing.counts_path(job.out, number - 1, 0).parent)
    return found


def lengths(job: Job) -> tuple[Counter, Counter]:
    """Return the counts by `counting.bucket` of the sizes of the records read, and of those written."""
    last = len(stages(job.cfg)) - 1
    found = []
    for number, key in ((0, "read_lengths"), (last, "written_lengths")):
        total: Counter = Counter()
        for i in range(len(job.shards)):
            total.update(
                {int(k): v for k, v in json.loads(writing.counts_path(job.out, number, i).read_text())[key].items()}
            )
        found.append(total)
    return found[0], found[1]


def outputs(job: Job) -> dict[str, list[Any]]:
    """Return the records, bytes and sha256 of each file that was written, by its name in the folder."""
    last = len(stages(job.cfg)) - 1
    found = {}
    for i in range(len(job.shards)):
        found |= json.loads(writing.counts_path(job.out, last, i).read_text())["files"]
    return dict(sorted(found.items()))


def sources(job: Job) -> list[dict[str, Any]]:
    """Return the file, the bytes and the sha256 of each piece that was read."""
    return [
        piece
        for i in range(len(job.shards))
        for piece in json.loads(writing.counts_path(job.out, 0, i).read_text())["sources"]
    ]


def states(job: Job) -> dict[str, Arrays]:
    """Return the state of each fitted step by its name."""
    return {
        stage.observed[0]: writing.load(writing.state_path(job.out, stage.observed[0]))
        for stage in stages(job.cfg)
        if stage.observed
    }


def _each(job: Job, number: int, waiting: Sequence[int], workers: int) -> Iterator[int]:
    if workers == 1 or len(waiting) <= 1:
        for i in waiting:
            yield do(job, number, i)
        return
    # Not forked: a fork of a process whose libraries have threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context) as pool:
        tasks = [pool.submit(do, job, number, i) for i in waiting]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool:
            raise PrepareError(
                "a worker process was killed, perhaps for want of memory: run the same command again, which goes on "
                "where it was, with fewer --workers"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def do(job: Job, number: int, shard: int) -> int:
    """Do one shard of one stage, unless it is done, and return the shard."""
    counts_path = writing.counts_path(job.out, number, shard)
    if counts_path.is_file():
        return shard
    stage, cfg = stages(job.cfg)[number], job.cfg
    functions = _functions(job, stage)
    steps = ([stage.first] if stage.first else []) + list(stage.then)
    counts = [Counts(cfg.examples, step.counted) for _, step in steps]
    observer = stage.observed[1].observe(cfg.options(stage.observed[0]), cfg) if stage.observed else None
    writer = writing.Writer(job.out, None if observer is None else number, shard, cfg.text_key)
    read_lengths: Counter = Counter()
    read_bytes = 0
    source = _raw(job, shard) if number == 0 else _between(job, number - 1, shard)
    with writer:
        for place, where, record in source:
            nbytes = size(record, cfg.text_key)
            read_bytes += nbytes
            read_lengths[bucket(nbytes)] += 1
            kept = _through(functions, counts, place, where, record, nbytes, cfg.text_key)
            if kept is not None:
                writer.write(place, kept)
                if observer is not None:
                    _guard(stage.observed[0], where, observer.add, place, kept)  # pyright: ignore[reportOptionalSubscript]
    if observer is not None:
        writing.save(writing.observed_path(job.out, number, shard), observer.arrays())
    writing.write(
        counts_path,
        json.dumps(
            {
                "read_bytes": read_bytes,
                "read_lengths": dict(read_lengths),
                "written_lengths": dict(writer.lengths),
                "files": writer.finished(),
                "sources": digests(job.shards[shard]) if number == 0 else [],
                "steps": [each.json() for each in counts],
            }
        ),
    )
    return shard


def _through(functions, counts, place, where, record, nbytes, text_key) -> Record | None:
    """Take a record through steps; return None if one dropped it."""
    for (name, function, needs_place), count in zip(functions, counts, strict=True):
        text = record.get(text_key)
        before = text if isinstance(text, str) else dict(record)
        arguments = (place, record) if needs_place else (record,)
        answer = _guard(name, where, function, *arguments)
        if isinstance(answer, Dropped):
            count.drop(place, answer.rule, record, nbytes, answer.because, text_key)
            return None
        same = answer.get(text_key) is text and text is not None
        after = nbytes if same else size(answer, text_key)
        count.keep(place, before, answer, nbytes, after, text_key)
        record, nbytes = answer, after
    return record


def _guard(name: str, where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a step; what it raises names it and the record."""
    try:
        return function(*arguments)
    except UserError as error:
        raise PrepareError(f"step {name}, {where}: {error}") from None
    except Exception as error:
        raise PrepareError(f"step {name}, {where}: {named(error)[:300]}") from error


def _functions(job: Job, stage: Stage) -> list[tuple[str, Callable[..., Any], bool]]:
    found: list[tuple[str, Callable[..., Any], bool]] = []
    if stage.first:
        name, step = stage.first
        found.append(
            (name, step.build(job.cfg.options(name), job.cfg, writing.load(writing.state_path(job.out, name))), True)
        )
    return found + [(name, step.build(job.cfg.options(name), job.cfg), False) for name, step in stage.then]


def _raw(job: Job, shard: int) -> Iterator[tuple[int, str, Record]]:
    for i, (where, record) in enumerate(read(job.shards[shard], job.readers)):
        if writing.SIDE in record:  # which names a folder
            raise PrepareError(f"{where}: a column may not be called {writing.SIDE!r}: rename it")
        yield shard << SHARD_BITS | i, where, record


def _between(job: Job, number: int, shard: int) -> Iterator[tuple[int, str, Record]]:
    with writing.records_path(job.out, number, shard).open("rb") as file:
        for line in file:
            place, record = json.loads(line)
            yield place, f"record {place & 2**SHARD_BITS - 1} of shard {shard}", record
