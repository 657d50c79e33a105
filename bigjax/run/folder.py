"""The folder of one run: what is in it, and whether it belongs to the config that is about to run.

Reading a config does not import JAX, so that a command can show it at once.
"""

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bigjax.config import Config, replaced, strict
from bigjax.data.errors import DataError
from bigjax.errors import ConfigError, UserError, named
from bigjax.paths import AnyPath, as_path
from bigjax.run import identity
from bigjax.run.json_files import reading, write_json
from bigjax.run.lock import LOCK
from bigjax.version import __version__

PACKAGES = ("bigjax", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "tokenizers", "transformers")
"""The packages whose versions a run records."""


@dataclass(frozen=True, init=False)
class RunFolder:
    """Paths in the folder of one run. Only process 0 writes; every JSON file is whole or absent."""

    path: AnyPath

    def __init__(self, path: str | AnyPath, contents: Callable[[Config], identity.Contents] = identity.contents_of):
        object.__setattr__(self, "path", as_path(path))
        object.__setattr__(self, "_contents", contents)

    @classmethod
    def existing(cls, path: str | AnyPath) -> "RunFolder":
        """Return the folder of a run that was started before.

        Raises:
            UserError: it is none.
        """
        found = cls(path)
        if not found.config.is_file():
            raise UserError(f"{path} is not the folder of a run: it has no config.json")
        return found

    @property
    def config(self) -> AnyPath:
        """`{"config": the resolved config, "fingerprint": of its maths and its text, "text": what its files hold}`."""
        return self.path / "config.json"

    @property
    def environment(self) -> AnyPath:
        """`{"sessions": [...]}`: where, when and with what the run was started, once for every start."""
        return self.path / "environment.json"

    @property
    def data(self) -> AnyPath:
        """What the run trains on and holds out: sizes, hashes and duplicates."""
        return self.path / "data.json"

    @property
    def metrics(self) -> AnyPath:
        """One JSON object a line; see `bigjax.run.metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> AnyPath:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> AnyPath:
        """One folder a step; see `bigjax.checkpoint`."""
        return self.path / "checkpoints"

    @property
    def result(self) -> AnyPath:
        """What a finished run found; its presence means that the run is finished."""
        return self.path / "result.json"

    @property
    def loss_plot(self) -> AnyPath:
        """A picture of the loss curve."""
        return self.path / "loss.png"

    @property
    def forensics(self) -> AnyPath:
        """One folder for every step that diverged; see `bigjax.train.forensics`."""
        return self.path / "forensics"

    @property
    def outcome(self) -> AnyPath:
        """`{"state", "exit_status", "reason"}`: how a run ended that a sweep could not finish."""
        return self.path / "outcome.json"

    @property
    def output(self) -> AnyPath:
        """What a run that a sweep started has printed."""
        return self.path / "output.log"

    @property
    def left_out(self) -> AnyPath:
        """The batches that rollbacks left out; see `bigjax.train.rollback`."""
        return self.path / "left_out.json"

    @property
    def code(self) -> AnyPath:
        """The user's own code that the config names, as it was: a file a module."""
        return self.path / "code"

    @property
    def profile(self) -> AnyPath:
        """Traces of the steps chosen with --profile."""
        return self.path / "profile"

    @property
    def tokenizer(self) -> AnyPath:
        """The tokenizer the run trained with."""
        return self.path / "tokenizer.json"

    @property
    def complete(self) -> bool:
        """Whether the run is finished."""
        return self.result.is_file()

    def check(self, config: Config, changing: Collection[str] = ()) -> dict[str, list[Any]]:
        """Make sure that a run of `config` may go on, or start, here; write nothing.

        Returns path -> [before, now] of the plumbing fields, and those in `changing`, that the start before set
        differently.

        Raises:
            UserError: the folder belongs to a config with other maths, or is not the folder of a run.
        """
        if self.config.is_file():
            return self._changed(config, changing)
        if self._is_foreign():
            raise UserError(f"{self.path} is not empty and not the folder of a run: choose another --workdir")
        return {}

    def check_text(self, config: Config) -> None:
        """Make sure that a run here which `config` names is of the text that the files hold now; write nothing.

        Raises:
            UserError: it is of another, naming the files and both hashes.
        """
        if self.config.is_file() and not any(not found.plumbing for found in strict.diff(self.load_config(), config)):
            self.check(config)

    def is_of(self, config: Config) -> bool:
        """Whether the run here is that of `config`, whose text may lie elsewhere now."""
        stored, before = self._load()
        if before is None:  # it has no files, or an earlier version did not write down what they hold
            return strict.fingerprint(stored) == strict.fingerprint(config)
        return self.fingerprint == identity.fingerprint(config, self.__dict__["_contents"](config))

    @property
    def fingerprint(self) -> str:
        """The identity that the run recorded, or that its config has without any."""
        cfg, text = self._load()
        return identity.fingerprint(cfg, text or {})

    def signature(self, config: Config) -> dict[str, Any]:
        """Return `{"config", "fingerprint"}`, by which a checkpoint of the run here says whose it is."""
        return {"config": strict.to_dict(config), "fingerprint": self.fingerprint}

    def open(self, config: Config, changing: Collection[str] = (), notes: Collection[str] = ()) -> bool:
        """Create the folder for `config`, or find that it already belongs to it; return whether it did.

        Every process calls this. `config.json` takes the plumbing fields of the latest start, and those in `changing`:
        where one of these is another, a result that was there is no longer that of the run, and goes. The environment
        keeps `notes`, what was decided at this start. A file system shared by all processes is assumed.

        Raises:
            UserError: as `check`.
        """
        import jax

        existing, changed = self.config.is_file(), self.check(config, changing)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # No process may take what process 0 writes below for what was there before.
            multihost_utils.sync_global_devices("run folder checked")
        if jax.process_index() == 0:
            sessions = self._sessions()
            try:
                if set(changed) & set(changing):
                    self.result.unlink(missing_ok=True)
                self.write_config(config)
                session = describe_session() | {"changed": changed, "notes": list(notes)}
                write_json(self.environment, {"sessions": [*sessions, session]})
            except OSError as error:
                raise UserError(f"{self.path} cannot be written to: {error.strerror}") from error
        return existing

    def _sessions(self) -> list[dict[str, Any]]:
        with reading(self.environment):
            return [*json.loads(self.environment.read_text())["sessions"]] if self.environment.exists() else []

    def write_config(self, config: Config) -> None:
        """Make the folder and write `config.json`, which comes first: a start would refuse a folder without it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            text = self.__dict__["_contents"](config)
        except DataError:  # of a point of a sweep, which will say so when it runs
            text = {}
        record = {"config": strict.to_dict(config), "fingerprint": identity.fingerprint(config, text)}
        write_json(self.config, record | ({"text": text} if text else {}))

    def write_data(self, described: dict[str, Any]) -> None:
        """Write `data.json`.

        Raises:
            UserError: it cannot be written.
        """
        try:
            write_json(self.data, described)
        except OSError as error:
            raise UserError(f"{self.data} cannot be written to: {error.strerror}") from error

    def keep_code(self, config: Config) -> None:
        """Copy the user's own code that a config names to `code/`, a file a module.

        Raises:
            UserError: it cannot be written.
        """
        try:
            for module, file in identity.code_of(config).items():
                self.code.mkdir(exist_ok=True)
                (self.code / f"{module}.py").write_bytes(file.read_bytes())
        except OSError as error:
            raise UserError(f"{self.code} cannot be written to: {error.strerror}") from error

    def load_config(self) -> Config:
        """Return the config of the run.

        Raises:
            UserError: there is no readable `config.json`, or its config does not fit this version of the schema.
        """
        return self._load()[0]

    def _load(self) -> tuple[Config, identity.Contents | None]:
        """Return the config of the run and what the files of its text held; None where nobody wrote that down."""
        self.existing(self.path)
        try:
            record = json.loads(self.config.read_text())
            cfg = strict.from_dict(Config, record["config"])
            text = record.get("text")
            fingerprint = identity.fingerprint(cfg, text or {})
        except ConfigError as error:
            raise UserError(f"{self.config} does not fit this version of the schema:\n{error}") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self.config} cannot be read: {named(error)}") from error
        if record.get("fingerprint", fingerprint) != fingerprint:
            print(
                f"note: {self.config} records fingerprint {record['fingerprint']}, this version of the schema gives "
                f"{fingerprint}",
                file=sys.stderr,
            )
        return cfg, text

    def write_result(self, result: dict[str, Any]) -> None:
        """Write `result.json`, which declares the run finished; NaN and infinities become strings."""
        import jax

        if jax.process_index() == 0:
            write_json(self.result, result)

    def _is_foreign(self) -> bool:
        """Whether the path holds something other than what a start that was cut short leaves behind."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(found.suffix != ".tmp" and not found.name.startswith(LOCK) for found in self.path.iterdir())

    def _changed(self, config: Config, changing: Collection[str]) -> dict[str, list[Any]]:
        """Return path -> [before, now] of the fields that differ from the stored config, all of which may."""
        stored, before = self._load()
        differences, now = strict.diff(stored, config), self.__dict__["_contents"](config)
        known = now if before is None else before  # an earlier version did not write it down
        maths = [found for found in differences if not found.plumbing and found.path not in changing]
        values = {leaf.path: leaf.value for leaf in strict.leaves(config)}
        aligned = replaced(stored, {path: values[path] for path in changing})
        if before is None or identity.fingerprint(aligned, known) != identity.fingerprint(config, now):
            lines = [f"  {found.path}: {found.a!r} there, {found.b!r} here" for found in maths]
            lines += [f"  {line}" for line in identity.changes(known, now)]
            if lines:
                listed = "\n".join(lines)
                whose = "run" if maths else "text"
                raise UserError(
                    f"{self.path} belongs to another {whose}; choose another --workdir. It differs in\n{listed}"
                )
        return {found.path: [found.a, found.b] for found in differences}


def describe_session() -> dict[str, Any]:
    """Return what is needed to repeat a start: command, code, versions and devices, but no host name."""
    import jax

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": versions(PACKAGES) | {"bigjax": __version__},
        "devices": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": len(jax.devices()),
        },
        "processes": jax.process_count(),
    }


def git_revision() -> dict[str, Any] | None:
    """Return the commit of the code and whether the files differ from it; None outside a git checkout."""
    folder, name = Path(__file__).resolve().parent, Path(__file__).name

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments), cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", name)  # installed inside somebody else's checkout, it is not of it
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of every one of `packages` that is installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
