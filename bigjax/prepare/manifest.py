"""The folder of a preparation: who may write to it, and what says afterwards what it holds and where it came from."""

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigjax.config import strict
from bigjax.prepare import counting, running, writing
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.pipeline import Preparation

BEGUN, MANIFEST, REPORT = "preparation.json", "manifest.json", "report.json"
"""Written first, last, and before the last."""

PACKAGES = ("datatrove", "ftfy", "trafilatura", "py3langid", "numpy", "scikit-learn", "pyarrow", "Pillow", "ImageHash")
"""On whose versions what is prepared may depend."""


def begin(out: Path, cfg: Preparation, files: Sequence[tuple[str, Path]]) -> bool:
    """Make the folder, or go on in one that was begun with the same config and files; return whether it is finished.

    Raises:
      PrepareError: there is something else in it, or it was begun with another config or other files.
    """
    state = [[kind, str(path), path.stat().st_size, path.stat().st_mtime_ns] for kind, path in files]
    mine = {"fingerprint": cfg.fingerprint(), "files": state, "config": strict.to_dict(cfg)}
    begun = out / BEGUN
    try:
        if begun.is_file():
            theirs = json.loads(begun.read_text())
            if theirs["fingerprint"] != mine["fingerprint"]:
                raise PrepareError(f"{out} was prepared with another config: choose another --out, or remove it")
            if theirs["files"] != mine["files"]:
                raise PrepareError(
                    f"the sources have changed since {out} was begun: choose another --out, or remove it"
                )
            return (out / MANIFEST).is_file()
        if out.exists() and (not out.is_dir() or any(path.suffix != ".lock" for path in out.iterdir())):
            raise PrepareError(f"{out} is not an empty folder: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        writing.write(begun, json.dumps(mine, indent=2) + "\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError):
            raise PrepareError(f"--out={out} cannot be written: {error.strerror}") from error
        raise PrepareError(f"{begun} is damaged: remove {out}, or choose another --out") from error
    return False


def report(job: running.Job, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the report says, as JSON can hold it."""
    read, written = running.lengths(job)
    files = running.outputs(job)
    sides: dict[str, list[int]] = {}
    for name, (records, nbytes, _) in files.items():
        total = sides.setdefault(name.partition("/")[0], [0, 0])
        total[0], total[1] = total[0] + records, total[1] + nbytes
    steps = [{**step, "examples": {k: [e for _, e in v] for k, v in step["examples"].items()}} for step in steps]
    return {
        "fingerprint": job.cfg.fingerprint(),
        "sources": list(job.cfg.sources),
        "config": strict.to_dict(job.cfg),
        "records": sum(read.values()),
        "bytes": steps[0]["bytes"] if steps else 0,
        "kept": sum(written.values()),
        "kept_bytes": steps[-1]["kept_bytes"] if steps else 0,
        "read_histogram": counting.histogram(read),
        "written_histogram": counting.histogram(written),
        "steps": steps,
        "sides": sides,
        "warnings": warnings(steps),
    }


def warnings(steps: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each rule that dropped more than half of what came to its step."""
    found = []
    for step in steps:
        for rule, (records, _) in step["dropped"].items():
            if records > step["records"] / 2:
                of = f"{records:,} of {step['records']:,} records ({records / step['records']:.0%})"
                found.append(f"{step['step']}: the rule {rule} dropped {of}: look at its examples before you train")
    return found


def finish(job: running.Job, found: dict[str, Any]) -> dict[str, Any]:
    """Write the fitted states that are JSON, and the manifest last; remove what was needed on the way."""
    for name, state in running.states(job).items():
        if "json" in state:
            (job.out / "fitted").mkdir(exist_ok=True)
            writing.write(job.out / "fitted" / f"{name}.json", str(state["json"]))
    files = {
        name: {"records": records, "bytes": nbytes, "sha256": digest}
        for name, (records, nbytes, digest) in running.outputs(job).items()
    }
    manifest = {
        "format": 1,
        "fingerprint": found["fingerprint"],
        "config": found["config"],
        "versions": versions(),
        "sources": running.sources(job),
        "files": files,
        "sides": found["sides"],
        "steps": [
            {key: step[key] for key in ("step", "records", "bytes", "kept", "dropped")} for step in found["steps"]
        ],
    }
    writing.write(job.out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(job.out / writing.WORK, ignore_errors=True)
    return manifest


def versions() -> dict[str, str]:
    """Return the version of Python and of each of `PACKAGES` that is installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
