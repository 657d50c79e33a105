"""The runs of a report: what each folder's `config.json`, `metrics.jsonl` and `result.json` say, and its state.

`environment.json` gives the command that made a run, `outcome.json` the reason why a point of a sweep ended early, and
`forensics/` that a run without a result diverged; no number is taken from them.
"""

import json
import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bigjax.config import Config, strict
from bigjax.errors import UserError, named
from bigjax.paths import AnyPath, as_path, is_remote, matching
from bigjax.run.folder import RunFolder
from bigjax.run.rows import read_rows

State = Literal["finished", "diverged", "unfinished", "unreadable"]

CURVES = ("train/loss", "eval/loss")

ORDER = tuple(leaf.path for leaf in strict.leaves(Config()))
"""Every field in the order of the schema, in which what sets others comes first."""

PLUMBING = frozenset(leaf.path for leaf in strict.leaves(Config()) if leaf.plumbing)
"""Fields that do not change the numbers."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: its path; name: what tells it from the others.
        reason: why it is not `finished`; empty if it is.
        config: every field by dotted path, derived ones as their defaults.
        result: `result.json`, with NaN and infinities as floats; empty if there is none.
        step: of the last row of the metrics.
        curves: metric -> `(n, 3)`: step, seconds, value.
        command: what made it, or repeats it if that is not recorded.
        config_file: the FILE of --config=FILE[:ARG] in the command, if any.
    """

    folder: str
    name: str
    state: State
    reason: str
    config: dict[str, Any]
    fingerprint: str | None
    result: dict[str, Any]
    step: int
    curves: dict[str, np.ndarray]
    command: str
    config_file: str | None

    @property
    def seed(self) -> int | None:
        """`train.seed`."""
        return self.config.get("train.seed")

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens read in one step."""
        rows, length = self.config.get("train.global_batch_size"), self.config.get("data.seq_len")
        return rows * length if rows and length else None

    @property
    def time_s(self) -> float | None:
        """Seconds of training until the last row."""
        ends = [curve[-1, 1] for curve in self.curves.values() if len(curve)]
        return float(max(ends)) if ends else None

    def number(self, key: str) -> float | None:
        """Return a number of `result.json`, or None if it is not there."""
        value = self.result.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def read(pattern: str) -> list[Run]:
    """Return the runs whose folders match the glob `pattern`, in the order of their names.

    Raises:
        UserError: no folder of a run matches.
    """
    folders = find(pattern)
    names = _names([str(folder.path) for folder in folders])
    records = [_json(folder.config) for folder in folders]
    configs = _configs([record.get("config") for record in records])
    return [_read(*found) for found in zip(folders, names, records, configs, strict=True)]


def find(pattern: str) -> list[RunFolder]:
    """Return the run folders that match a glob, in the order of their paths.

    Raises:
        UserError: there is none, or `pattern` is no glob.
    """
    root, relative = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (Path(), pattern)
    try:
        paths = matching(pattern) if is_remote(pattern) else sorted(root.glob(relative))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise UserError(f"--runs={pattern} is not a pattern of paths: {error}") from error
    found = [RunFolder(path) for path in paths if (path / "config.json").is_file()]
    if not found:
        raise UserError(f"--runs={pattern} matches no folder of a run: none there has a config.json")
    return found


def signature(pattern: str) -> tuple:
    """Return what changes whenever a run that `read` would return does."""
    found = []
    for folder in find(pattern):
        for path in (folder.config, folder.metrics, folder.result, folder.outcome):
            if path.is_file():
                at = path.stat()
                found.append((str(path), at.st_mtime_ns, at.st_size))
    return tuple(found)


def _read(folder: RunFolder, name: str, record: dict[str, Any], config: dict[str, Any]) -> Run:
    curves: dict[str, np.ndarray] = dict.fromkeys(CURVES, np.empty((0, 3)))
    step = 0
    problem = record.get("problem", "" if config else "config.json holds no config")
    result: dict[str, Any] = {}
    if folder.complete:
        result = {key: _float(value) for key, value in _json(folder.result).items()}
        problem = problem or result.get("problem", "")
    try:
        rows = list(read_rows(folder.metrics)) if folder.metrics.is_file() else []
        curves = {
            key: np.array([(row["step"], row["time_s"], row[key]) for row in rows if key in row], float).reshape(-1, 3)
            for key in CURVES
        }
        step = int(rows[-1]["step"]) if rows else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = problem or f"metrics.jsonl cannot be read: {named(error)}"
    state, reason = _state(folder, config, result, curves, step)
    if problem:
        state, reason = "unreadable", problem
    command, config_file = _command(folder)
    return Run(
        folder=str(folder.path),
        name=name,
        state=state,
        reason=reason,
        config=config,
        fingerprint=record.get("fingerprint"),
        result=result,
        step=step,
        curves=curves,
        command=command,
        config_file=config_file,
    )


def _state(
    folder: RunFolder, config: dict[str, Any], result: dict[str, Any], curves: dict[str, np.ndarray], last: int
) -> tuple[State, str]:
    """Return the state by rule: a loss that is not finite, or no better than guessing tokens, is a divergence."""
    steps = config.get("train.steps")
    progress = f"{last} of {steps} steps"
    if folder.complete:
        losses = {key: value for key in ("eval_loss", "train_loss") if isinstance(value := result.get(key), float)}
        for key, loss in losses.items():
            if not math.isfinite(loss):
                return "diverged", f"{key} is {loss}"
        vocab = config.get("model.vocab_size")
        if vocab and config.get("model.head") == "lm" and losses.get("eval_loss", 0.0) >= math.log(vocab):
            return "diverged", f"eval_loss {losses['eval_loss']:.4g} is not below log {vocab}, that of guessing"
        return "finished", ""
    outcome = _json(folder.outcome) if folder.outcome.is_file() else {}
    if outcome.get("state"):
        state = "diverged" if outcome["state"] == "diverged" else "unfinished"
        return state, f"{outcome['state']} after {progress}: {outcome.get('reason', 'no reason given')}"
    train = curves["train/loss"]
    if len(train) and not math.isfinite(train[-1, 2]):
        return "diverged", f"train/loss is {train[-1, 2]} after {progress}"
    step = max((int(path.name.split("-")[1]) for path in folder.forensics.glob("step-*")), default=0)
    if step > last:
        return "diverged", f"stopped at step {step} of {steps}, which was not finite or a spike: see forensics/"
    return "unfinished", f"no result.json yet: {progress}"


def _configs(nested: list[Any]) -> list[dict[str, Any]]:
    """Return the configs as flat dicts, derived fields at their defaults unless some config is of another schema."""
    try:
        schema = [
            strict.to_config_dict(strict.from_dict(Config, config)).to_dict() if isinstance(config, dict) else {}
            for config in nested
        ]
    except UserError:
        defaults = {leaf.path: leaf.value for leaf in strict.leaves(Config())}
        return [defaults | _flat(config) if isinstance(config, dict) else {} for config in nested]
    flats = [_flat(config) for config in schema]  # with the fields of families and tasks behind those of all
    return [{path: flat[path] for path in dict.fromkeys((*ORDER, *flat)) if path in flat} for flat in flats]


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def _json(path: AnyPath) -> dict[str, Any]:
    """Return a JSON object, or `{"problem": ...}`."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return {"problem": f"{path.name} cannot be read: {error}"}
    return found if isinstance(found, dict) else {"problem": f"{path.name} holds no object"}


def _float(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _names(paths: list[str]) -> list[str]:
    """Return the paths without the folder that all are in."""
    if len(paths) == 1:
        return [as_path(paths[0]).absolute().name]
    if is_remote(paths[0]):
        common = os.path.commonpath(paths)  # of the part after `s3://BUCKET`, too: all are of one pattern
        return [path.removeprefix(common.replace(":/", "://")).lstrip("/") for path in paths]
    common = os.path.commonpath([str(Path(path).absolute()) for path in paths])
    return [str(Path(path).absolute().relative_to(common)) for path in paths]


def _command(folder: RunFolder) -> tuple[str, str | None]:
    """Return the command of the first session and the file of its --config."""
    sessions = _json(folder.environment).get("sessions") if folder.environment.is_file() else None
    argv = sessions[0].get("argv") if isinstance(sessions, list) and sessions else None
    if not argv:
        return f"python -m bigjax train --config={shlex.quote(str(folder.path))} --workdir=NEW", None
    match = re.search(r"(?:^|/)(bigjax/)?experiments/(\w+)\.py$", argv[0])
    program = ["python", argv[0]]
    if match:
        program = ["bigjax", match[2]] if match[1] else ["python", "-m", f"experiments.{match[2]}"]
    sources = [word.partition("=")[2] for word in argv if word.startswith(("--config=", "-config="))]
    return shlex.join([*program, *argv[1:]]), sources[-1].partition(":")[0] if sources else None
