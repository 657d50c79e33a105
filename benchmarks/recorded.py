"""Run the commands whose output the documentation shows, and write what they say to docs/recorded/NAME.txt.

    python -m benchmarks.recorded NAME ...
    python -m benchmarks.recorded --check NAME ...

`docs/recorded/commands.toml` declares them. `--check` writes nothing and prints where what they say now differs from
what is recorded, in more than what depends on the clock and the machine; the exit status is then 1.
"""

import argparse
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "recorded"
EXAMPLES = ROOT / "docs" / "examples"

TOLERANCE = 0.02
"""The relative difference that a number may have on another machine: of rounding, after some training."""

CLOCK = re.compile(
    r"\b[\d.,]+[kM]? (tok|tokens|rows)/s|\bMFU +[\d.]+ %|\b(\d+h)?(\d+m)?[\d.]+ ?m?s\b|\bpid \d+"
    r"|\b\d{4}-\d\d-\d\d([ T][\d:.]+)?|\b([Pp]ython|jax|JAX|orbax-checkpoint|transformers|torch) \d[\w.]*"
)
"""What a line says of speed, time, processes and versions."""

PARTS = re.compile(r"[0-9a-f]{12,}|[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|[^\d+-]+|.")


@dataclass(frozen=True)
class Recording:
    """What `commands.toml` declares of one recording."""

    name: str
    commands: tuple[str, ...]
    after: str = ""
    status: int = 0
    until: str = ""
    long: bool = False

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.txt"


def declared() -> dict[str, Recording]:
    """Return every recording by its name."""
    found = tomllib.loads((FOLDER / "commands.toml").read_text())
    return {name: Recording(name, **{**fields, "commands": (*fields["commands"],)}) for name, fields in found.items()}


def chain(recording: Recording, known: Mapping[str, Recording]) -> list[Recording]:
    """Return a recording and those in whose folder it goes on, the first one first."""
    return [*(chain(known[recording.after], known) if recording.after else []), recording]


class Scratch:
    """A folder in which commands are run as in a user's shell."""

    def __init__(self, place: Path, cache: Path, start: Path):
        """Make the folder `place`, with what `start` holds; compiled programs and tokens go to `cache`."""
        self.folder = place / "work"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copytree(start, self.folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        programs = place / "bin"
        programs.mkdir()
        for name, command in (("python", ""), ("bigjax", "-m bigjax")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
            (programs / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "NPROC"))}
        self._variables = kept | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled"),
            "XDG_CACHE_HOME": str(cache),
            "COLUMNS": "110",
        }

    def said(self, recording: Recording, whole: bool = True) -> list[str]:
        """Return the commands of a recording and what they say, line by line, or only as far as a test follows it.

        Raises:
          RuntimeError: a command ends with another status than declared.
        """
        lines = []
        for command in recording.commands:
            last = command == recording.commands[-1]
            lines.append(f"$ {command}")
            lines += self._output(
                command, recording.status if last else 0, recording.until if last and not whole else ""
            )
        return lines

    def _output(self, command: str, status: int, until: str) -> list[str]:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines = []
        with process:  # which closes the pipe and waits
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip().replace(str(self.folder), "~/work"))
                if until and line.startswith(until):
                    os.killpg(process.pid, signal.SIGKILL)
                    return lines
        if process.returncode != status:
            raise RuntimeError(f"{command}: exit status {process.returncode}, not {status}\n" + "\n".join(lines))
        return lines


def made(names: Iterable[str], place: Path, whole: bool = True) -> Iterator[tuple[Recording, list[str]]]:
    """Yield recordings and what their commands say now, each of them run once, after those in whose folder it goes on.

    Args:
      place: an existing folder, which is filled.
      whole: whether to run every command to its end, or only as far as a test follows it.
    """
    known = declared()
    done: dict[str, tuple[Path, list[str]]] = {}
    for name in names:
        start = EXAMPLES
        for recording in chain(known[name], known):
            if recording.name not in done:
                # In a copy, so that it finds what the one before left and nothing of others that go on from there.
                scratch = Scratch(place / recording.name, place / "cache", start)
                done[recording.name] = scratch.folder, scratch.said(recording, whole)
            start = done[recording.name][0]
        yield known[name], done[name][1]


def head() -> str:
    """Return the first line of a recording: when and where it was made."""
    cores = len(os.sched_getaffinity(0))
    versions = f"Python {platform.python_version()}, JAX {version('jax')}"
    return f"# {time.strftime('%Y-%m-%d')}, {cores} CPU cores ({platform.machine()}), {versions}"


def differences(recorded: list[str], now: list[str]) -> list[str]:
    """Return the lines of two outputs, without their heads, that say other things; at most the first one that does."""
    recorded, now = ([line for line in lines if not _between(line)] for lines in (recorded, now))
    for number, (old, new) in enumerate(zip(recorded, now, strict=False), 1):
        if not _same(old, new):
            return [f"line {number}", f"  recorded: {old}", f"  now:      {new}"]
    if len(recorded) != len(now):
        return [f"{len(now)} lines, recorded are {len(recorded)}", *(f"  {line}" for line in now[len(recorded) :])]
    return []


def _between(line: str) -> bool:
    """Whether it is the progress of a run between its first and its last step: a slow machine shows more such lines."""
    found = re.match(r"step +(\d+)/(\d+) .* left ", line)
    return bool(found) and found[1] != found[2]


def _same(old: str, new: str) -> bool:
    parts = [PARTS.findall(" ".join(CLOCK.sub("@", line).split())) for line in (old, new)]
    return len(parts[0]) == len(parts[1]) and all(map(_close, *parts))


def _close(old: str, new: str) -> bool:
    if old == new:
        return True
    try:
        values = [float(part.replace(",", "")) for part in (old, new)]
    except ValueError:
        return False
    whole = "." not in old + new and "e" not in old + new
    return not whole and math.isclose(*values, rel_tol=TOLERANCE)


def shortened(lines: list[str], until: str) -> list[str]:
    """Return the lines of a recording up to the first that starts with `until`."""
    ends = [number for number, line in enumerate(lines, 1) if until and line.startswith(until)]
    return lines[: ends[0]] if ends else lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorded", description=(__doc__ or "").split("\n\n")[0])
    known = declared()
    parser.add_argument("names", metavar="NAME", nargs="+", choices=known, help=", ".join(known))
    parser.add_argument("--check", action="store_true", help="compare with what is recorded, and write nothing")
    arguments = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory() as place:
        for recording, lines in made(arguments.names, Path(place)):
            if not arguments.check:
                recording.file.write_text("\n".join([head(), *lines]) + "\n")
            elif found := differences(recording.file.read_text().splitlines()[1:], lines):
                status = 1
                print(f"{recording.name}:", *found, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
