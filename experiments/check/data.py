"""Is the data of a run what it was? Every byte of its sources is read and compared with what was recorded.

Of shards of tokens with their manifest, of texts with what the run folder holds. A start trusts sizes and times; this
trusts nothing. With --sources, shards of tokens that no run has read yet.

Exit status: 0 all is as it was; 1 a bug; 2 there is nothing to check; 4 something has changed or is damaged."""

import json
import tempfile
from collections.abc import Iterator

import numpy as np
from absl import flags

from bigjax.errors import UserError

from .. import cli

EXAMPLES = (
    "python -m experiments.check data --workdir=runs/quickstart",
    "python -m experiments.check data --sources='tokens:shards/*.bin'",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check data`."""
    flags.DEFINE_string("workdir", None, "the run folder", flag_values=flag_values)
    flags.DEFINE_multi_string(
        "sources", None, "shards, as tokens:GLOB, in the place of a run's", flag_values=flag_values
    )


def run(flag_values: flags.FlagValues) -> int:
    """Print a line for each source, and one for each file that is not what it was."""
    if flag_values.sources:
        if other := [spec for spec in flag_values.sources if not spec.startswith("tokens:")]:
            raise UserError(f"--sources={other[0]!r} has no manifest: give tokens:GLOB, or the --workdir of a run")
        problems = [line for spec in flag_values.sources for line in _stored(spec, None)]
    else:
        problems = list(_of_run(cli.required(flag_values, "workdir")))
    for line in problems:
        print(line)
    print("NOT as it was" if problems else "as it was, to the last byte")
    return 4 if problems else 0


def _of_run(workdir: str) -> Iterator[str]:
    from bigjax.config import replace
    from bigjax.run import identity
    from bigjax.run.folder import RunFolder
    from bigjax.run.json_files import reading

    folder = RunFolder.existing(workdir)
    cfg = folder.load_config()
    with reading(folder.config):
        recorded = json.loads(folder.config.read_text()).get("text")
    if not recorded:
        raise UserError(f"{folder.path} records no file of its data: it is made, or packaged with bigjax")
    for spec in (*cfg.data.sources, *cfg.data.eval_sources):
        if spec.startswith("tokens:"):
            yield from _stored(spec, cfg.data.cache_dir)
    # In an empty cache there is no digest that a file had before.
    with tempfile.TemporaryDirectory() as empty:
        now = identity.contents_of(replace(cfg, data={"cache_dir": empty}))
        yield from identity.changes(recorded or now, now)


def _stored(spec: str, cache_dir: str | None) -> Iterator[str]:
    from bigjax.data.stored.converted import suffix
    from bigjax.data.stored.corpus import grouped
    from bigjax.data.stored.manifest import verify
    from bigjax.data.stored.places import find_shards
    from bigjax.data.tokens.cache import cache_folder
    from bigjax.paths import as_path

    root, pattern = cache_folder(cache_dir), spec.removeprefix("tokens:")
    if suffix(pattern):
        return  # a table has no manifest; what it holds is compared with what the run recorded
    for folder, names in grouped(find_shards(pattern)):
        print(f"{folder}: {len(names):,} shards", flush=True)
        yield from verify(as_path(folder), np.array([name.encode() for name in names]), root)
