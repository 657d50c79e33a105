"""Prepare raw records for training: clean, filter, deduplicate and split them by the steps that a config declares.

The folder gets the prepared records as JSON lines, which `--config.data.sources=jsonl:...` then reads, a report
(index.html) of what each rule kept and dropped, and a manifest. A command that was killed goes on when typed again.
"""

import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from absl import flags

from bigjax.prepare.pipeline import Preparation

from . import cli, help_text

EXAMPLES = (
    "python -m experiments.prepare --config=prepare/web_text --config.sources='jsonl:raw/*.jsonl' --out=prepared",
    "python -m experiments.train --config=quickstart --config.data.sources='jsonl:prepared/data/*.jsonl'",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string(
        "out", None, "the folder to write, which is empty or was begun by this", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "workers",
        os.cpu_count() or 1,
        "processes; their number changes nothing in the folder",
        1,
        flag_values=flag_values,
    )


def main(flag_values: flags.FlagValues) -> None:
    """Prepare the records, or go on where a killed command was."""
    from bigjax.errors import UserError
    from bigjax.prepare import manifest, pipeline, reading, running
    from bigjax.run import lease
    from bigjax.run.json_files import write_json
    from bigjax.science.report.page import preparation

    out = Path(cli.required(flag_values, "out"))
    if flag_values.config is None:
        raise UserError("--config=FILE is missing, e.g. --config=prepare/web_text")
    cfg = pipeline.resolved(flag_values.config)
    files, notes = sources(cfg.sources)
    running.check(cfg)
    if manifest.begin(out, cfg, files):
        print(f"{out} is prepared already: nothing to do")
        return
    lock = out / "prepare.lock"
    try:
        owner, _ = lease.take(lock)
    except lease.Taken as taken:
        raise UserError(f"{out} is being written by another command: {taken}") from None
    try:
        with lease.renewed([lock]):
            for note in notes:
                print(f"note: {note}", file=sys.stderr)
            shards = tuple(reading.shards(files, max(1, round(cfg.shard_mb * 1e6))))
            job = running.Job(cfg, shards, readers(), out)
            steps = running.run(job, flag_values.workers, lambda line: print(line, flush=True))
            found = manifest.report(job, steps)
            write_json(out / manifest.REPORT, found)
            made = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
            command = " ".join([help_text.as_typed("python -m experiments.prepare"), *map(shlex.quote, sys.argv[1:])])
            preparation.write(found, out / "index.html", command=command, made=made)
            if not found["kept"]:
                raise UserError(f"no record is left: {out / 'index.html'} shows which rules dropped them")
            manifest.finish(job, found)
    finally:
        lease.release(lock, owner)
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(summary(found, out))


def sources(specs: tuple[str, ...]) -> tuple[list[tuple[str, Path]], tuple[str, ...]]:
    """Return the kind and the path of each file of some sources, in order, and what is to be said of others.

    Raises:
      UserError: a source is of no known kind, or has no files.
    """
    from bigjax.data.sources.readers import find_files
    from bigjax.errors import UserError

    found: list[tuple[str, Path]] = []
    notes: tuple[str, ...] = ()
    for spec in specs:
        kind, _, pattern = spec.partition(":")
        if kind not in readers() or not pattern:
            forms = ", ".join(f"{name}:GLOB" for name in readers())
            raise UserError(f"sources: {spec!r} is no source of records: give one of {forms}")
        files, said = find_files(pattern)
        found += [(kind, path) for path in files]
        notes += said
    twice = {path for _, path in found if sum(other == path for _, other in found) > 1} if len(specs) > 1 else ()
    if twice:
        raise UserError(f"sources: {min(twice)} is in two of them: take it out of one")
    return found, notes


def readers():
    """Return the reader of each kind of source."""
    from bigjax.data.sources import opening, readers
    from bigjax.prepare.images.files import read_image_file

    return {
        "text": read_text_file,
        "jsonl": readers.read_records,
        "csv": opening.RECORD_READERS["csv"],
        "tsv": opening.RECORD_READERS["tsv"],
        "parquet": opening.RECORD_READERS["parquet"],
        "images": read_image_file,
    }


def read_text_file(name: str, path: Path, keys: tuple[str, ...]):
    """Yield the one record of a text file: its text and its name."""
    from bigjax.data.sources.readers import read_text

    del keys
    for _, text in read_text(name, path):
        yield name, {"text": text, "file": name}


def summary(found: dict, out: Path) -> str:
    """Return what the command says at the end."""
    kept, records = found["kept"], found["records"]
    lines = [
        f"kept {kept:,} of {records:,} records ({kept / records:.1%}), {found['kept_bytes'] / 1e6:,.1f} of "
        f"{found['bytes'] / 1e6:,.1f} MB; {out / 'index.html'} says why"
    ]
    train = "train" if "train" in found["sides"] else next(iter(found["sides"]))
    held_out = next(
        (f" --config.data.eval_sources='jsonl:{out}/{side}/*.jsonl'" for side in found["sides"] if side == "eval"), ""
    )
    lines.append(f"train on it with --config.data.sources='jsonl:{out}/{train}/*.jsonl'{held_out}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, schema=Preparation)
