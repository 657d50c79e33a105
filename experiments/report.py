"""Report what a set of runs says: one HTML page that opens from disk, and its tables and figures as files.

Runs that differ only in train.seed are one setting, compared over seeds with a baseline. Diverged and unfinished runs
are shown and left out of statistics. The folder gets index.html, tables (CSV, LaTeX), figures (PNG, SVG) and the fits.
"""

import shlex
import sys
import time
from datetime import UTC, datetime

from absl import flags

from bigjax.paths import as_path, on_disk

from . import cli, extras

EXAMPLES = (
    "python -m experiments.report --runs='runs/lr_width/*' --out=report",
    "python -m experiments.report --runs='runs/*' --question='Does width help?' --baseline=d64 --out=report --watch",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("runs", None, "glob of run folders", flag_values=flag_values)
    flags.DEFINE_string("out", None, "the folder to write", flag_values=flag_values)
    flags.DEFINE_string(
        "question", None, "what was asked; by default the docstring of the runs' config file", flag_values=flag_values
    )
    flags.DEFINE_string(
        "baseline",
        None,
        "a run of the setting to compare with; by default the one that differs least from all others",
        flag_values=flag_values,
    )
    flags.DEFINE_bool("watch", False, "write it again while runs go on", flag_values=flag_values)
    flags.DEFINE_integer("watch_s", 20, "seconds between two looks, with --watch", 1, flag_values=flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Write the report once, or until no run goes on."""
    pattern, out = cli.required(flag_values, "runs"), as_path(cli.required(flag_values, "out"))
    extras.load("plotly", "report", "a report")
    from bigjax.science.report import runs as report_runs
    from bigjax.science.report import summary as report
    from bigjax.science.report.page import folder

    command = " ".join([cli.as_typed("python -m experiments.report"), *map(shlex.quote, sys.argv[1:])])
    before, ended, fitted = None, 0, {}
    while True:
        now = report_runs.signature(pattern)
        finished = tuple(entry for entry in now if entry[0].endswith("result.json"))
        found = report.build(
            pattern, question=flag_values.question, baseline=flag_values.baseline, fits=fitted.get(finished)
        )
        fitted = {finished: (found.fits, found.fits_skipped)}
        # Between two points of a sweep, too, no run goes on: it takes two looks at the same files to believe it.
        going_on = any(run.state == "unfinished" for run in found.runs)
        ended = 0 if going_on or now != before else ended + 1
        last = not flag_values.watch or ended > 0
        if last or now != before:
            made = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
            refresh = 0 if last else flag_values.watch_s
            with on_disk(out) as place:
                page = folder.write(found, place, command=command, made=made, refresh=refresh)
            print(f"wrote {out / page.name}: {summary(found)}", flush=True)
        if last:
            return
        before = now
        time.sleep(flag_values.watch_s)


def summary(found) -> str:
    """Return one line about a report."""
    counted = len(found.runs) - len(found.left_out)
    said = [f"{len(found.runs)} runs, {counted} in the statistics, {len(found.settings)} settings"]
    for verdict in ("better", "worse", "within noise", "no noise floor"):
        if number := sum(setting.row.verdict == verdict for setting in found.settings):
            said.append(f"{number} {verdict}")
    if found.incomparable:
        said.append(found.incomparable)
    said.append("scaling laws fitted" if found.fits else f"no scaling law: {found.fits_skipped}")
    return "; ".join(said)


if __name__ == "__main__":
    cli.main(main, doc=__doc__, define_flags=define_flags, examples=EXAMPLES, config=False)
