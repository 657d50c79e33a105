"""Predictions written down before their run may start, with a digest, and what became of them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bigjax.errors import UserError
from bigjax.run.folder import RunFolder
from bigjax.run.json_files import dumps, reading, write_json
from bigjax.science.laws.formula.law import Law

FILE = "prediction.json"


@dataclass(frozen=True)
class Judged:
    """A frozen prediction and the loss that its run reached; `held` is None while there is none."""

    place: str
    loss: float
    ci95: list[float]
    run: str
    measured: float | None

    @property
    def held(self) -> bool | None:
        return None if self.measured is None else self.ci95[0] <= self.measured <= self.ci95[1]


def freeze(law: Law, N: float, D: float, run: str | Path, folder: str | Path) -> dict[str, Any]:
    """Write what a law says of the run that will lie in `run`, of N parameters and D tokens, to `prediction.json`.

    Raises:
        UserError: the run has begun, something is frozen there already, or the law has no interval.
    """
    run, path = Path(run), Path(folder) / FILE
    if path.exists():
        raise UserError(f"{path} is frozen already: a prediction is written once, so name another --out")
    if RunFolder(run).config.exists():
        raise UserError(f"--run={run} has begun: a prediction is frozen before its run starts")
    ends = law.interval(N, D)
    if ends is None:
        raise UserError("a prediction without an interval cannot hold or fail: fit with a bootstrap")
    content = {
        "given": {"N": N, "D": D},
        "run": str(run),
        "law": law.formula.source if law.formula else "",
        "parameters": dict(law.parameters),
        "loss": law.loss(N, D),
        "ci95": ends,
        "frozen": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content["digest"] = _digest(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return content


def judge(paths: Sequence[Path]) -> list[Judged]:
    """Return what became of the predictions in files of `freeze`.

    Raises:
        UserError: a file was changed after it was frozen, or its run had begun before.
    """
    return [_judged(path) for path in paths]


def _judged(path: Path) -> Judged:
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["digest"] != _digest({name: value for name, value in content.items() if name != "digest"}):
            raise UserError(
                f"{path} was changed after it was frozen: its digest is another one, so it counts for nothing"
            )
        run, ends = RunFolder(Path(content["run"])), [float(end) for end in content["ci95"]]
        frozen = datetime.fromisoformat(content["frozen"]).timestamp()
        loss = float(content["loss"])
    if run.config.is_file() and run.config.stat().st_mtime < frozen:
        raise UserError(f"{run.path} had begun before {path} was frozen: that is no prediction")
    measured = None
    if run.result.is_file():
        with reading(run.result):
            measured = float(json.loads(run.result.read_text(encoding="utf-8"))["eval_loss"])
    return Judged(str(path), loss, ends, content["run"], measured)


def _digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of the content, its names in order."""
    return hashlib.sha256(dumps(dict(sorted(content.items()))).encode()).hexdigest()
