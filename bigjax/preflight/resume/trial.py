"""Is a run that was killed and resumed the run that nothing disturbed? Real launches of a small config, compared.

The config is shrunk (`shrink.shrink`, but for the vocabulary: the text is tokenised as configured), and so is an epoch
of its sources (`excerpt.excerpt`), to two and a half steps. One run goes straight through. One is killed by SIGKILL and
resumed three ways from copies of what it left: as it was, on other meshes, and by another number of processes.

On the same mesh everything must be bit-identical (`resume_compare.compare`). Elsewhere these are: the state that was
restored, every batch, every counter, every learning rate. Losses and parameters cannot be, since sums are taken in
another order, and no useful bound holds for them after several steps: an optimizer that divides by the size of a
gradient, or takes its sign, makes of a rounding error a whole update. But the first step after resuming starts from a
bit-identical state and a bit-identical batch, so its loss is off by no more than `error_bounds.Bounds.relative`: that
is judged, and what becomes of it later is not. That the update itself is right on every mesh is what
`preflight.equivalence` proves. In bfloat16 the bound is of the order of the loss, and says nothing: such a config is
checked in float32, which is how its state is stored, and in bfloat16 on the same mesh only.
"""

import dataclasses
import platform
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bigjax import models, params, sharding
from bigjax.checkpoint.digests import complete_steps
from bigjax.config import Config, LogConfig, MeshConfig, replace, strict
from bigjax.errors import UserError
from bigjax.preflight.equivalence import bounds as error_bounds
from bigjax.preflight.equivalence.meshes import mesh_name, places
from bigjax.preflight.resume.compare import Judgement, Trace, compare, read
from bigjax.preflight.shrink import shrink
from bigjax.run import children
from bigjax.run.folder import PACKAGES, RunFolder, git_revision, versions
from bigjax.run.json_files import write_json

STEPS_PER_EPOCH = 2.5
"""Of all sources together: an epoch ends within a batch, now and then."""

MAX_LISTED = 20
"""The most differences of one start that a certificate lists."""

Way = Literal["same mesh", "other mesh", "other processes"]


@dataclass(frozen=True)
class Case:
    """A way to resume: a mesh, and over how many processes its devices are spread."""

    way: Way
    mesh: MeshConfig
    processes: int = 1


@dataclass(frozen=True)
class Check:
    """What came of one start.

    Attributes:
      name: `straight`, `killed` or the way it was resumed. start: updates made when it started.
      status: `same`; `differs`, in `differences`, the first first; `fails`; or `does not fit`. `reason` explains the
        last two.
      compared: quantity -> number of comparisons. error, bound: largest of those that need not be bit-identical,
        relative. later: largest relative difference of later losses, which is not judged.
    """

    name: str
    mesh: str
    processes: int
    dtype: str
    status: Literal["same", "differs", "fails", "does not fit"]
    start: int = 0
    reason: str = ""
    differences: tuple[Judgement, ...] = ()
    compared: dict[str, int] = field(default_factory=dict)
    error: float = 0.0
    bound: float = 0.0
    later: float = 0.0


def small(cfg: Config, steps: int, kill_at: int, mesh: MeshConfig) -> list[Config]:
    """Return the config of the runs, in float32 and, if `cfg` computes in another dtype, in that one.

    It is `cfg` shrunk, with at least one checkpoint before `kill_at`.

    Raises:
      UserError: there is no room for a checkpoint before the kill, or a step after it.
    """
    steps = min(steps, cfg.train.steps)
    if not 2 <= kill_at < steps:
        raise UserError(f"--kill_at={kill_at} must be at least 2, to leave a checkpoint, and below the {steps} steps")
    every = min(max(steps // 4, 1), kill_at - 1)
    shrunk = shrink(cfg, steps)
    own = dataclasses.replace(
        replace(
            shrunk,
            model={"vocab_size": cfg.model.vocab_size},
            train={
                "eval_every_steps": every if cfg.train.eval_every_steps else 0,
                "eval_batches": min(cfg.train.eval_batches or 2, 2),
            },
            checkpoint={"every_steps": every, "keep_every_steps": 1},
        ),
        mesh=_allowing(cfg, mesh),
        log=LogConfig(every_steps=1, tensorboard=False, plot=False),
    )
    exact = replace(own, model={"dtype": "float32"})
    return [exact] if own == exact else [exact, own]


def cases(base: MeshConfig, others: Sequence[MeshConfig], processes: int) -> list[Case]:
    """Return the ways to resume a run that was trained on `base`.

    Raises:
      UserError: the devices of `base` cannot be spread evenly over so many processes.
    """
    found = [Case("same mesh", base), *(Case("other mesh", mesh) for mesh in others)]
    if not processes:
        return found
    if processes < 2 or places(base) % processes:
        raise UserError(f"--processes={processes} must be 0, or above 1 and divide mesh {mesh_name(base)}")
    return [*found, Case("other processes", base, processes)]


def unfit(cfg: Config, mesh: MeshConfig) -> str | None:
    """Return why `cfg` does not fit a mesh, or None."""
    cfg = dataclasses.replace(cfg, mesh=_allowing(cfg, mesh))
    try:
        abstract = sharding.abstract_mesh(sharding.mesh_shape(cfg.mesh, places(mesh)))
        sharding.fit(cfg, abstract, models.build(cfg.model).specs)
    except sharding.ShardingError as error:
        return str(error)
    return None


def _allowing(cfg: Config, mesh: MeshConfig) -> MeshConfig:
    return dataclasses.replace(mesh, allow_replicated=cfg.mesh.allow_replicated)


@dataclass(frozen=True)
class Runs:
    """The runs of one config, each in a folder of its own below `folder`.

    Attributes:
      cfg: as `small` returns it. program: what comes after `python` to start the launcher with a witness.
      keep: whether what is not needed any more stays.
    """

    cfg: Config
    kill_at: int
    folder: Path
    program: Sequence[str]
    keep: bool = True

    def straight(self) -> tuple[Trace, Check]:
        """Run without a disturbance.

        Raises:
          UserError: the launcher refuses the config or its data, or the run ends before its last step.
        """
        ended = self._launch("straight", self.cfg.mesh, 1)
        if ended.status:
            raise UserError(f"the shrunk run fails: {ended.error}")
        trace = self._trace("straight")
        # Against itself: only its counters, which are compared with its batches, can differ.
        judged = compare(trace, trace, 0, self.cfg.train.steps)
        return trace, self._check("straight", Case("same mesh", self.cfg.mesh), 0, judged)

    def disturbed(self, straight: Trace, cases: Sequence[Case]) -> Iterator[Check]:
        """Kill a run, then resume it in every way; yield what came of each."""
        check = self.killed(straight)
        yield check
        if check.status == "same":
            for case in cases:
                yield self.resumed(straight, case)

    def killed(self, straight: Trace) -> Check:
        """Run until the kill; compare what came before."""
        ended, case = self._launch("killed", self.cfg.mesh, 1, self.kill_at), Case("same mesh", self.cfg.mesh)
        if ended.status != -signal.SIGKILL:
            reason = f"it ended with status {ended.status} before the kill: {ended.error}"
            return self._failed("killed", case, "fails", 0, reason)
        return self._check("killed", case, 0, compare(straight, self._trace("killed"), 0, self.kill_at - 1))

    def resumed(self, straight: Trace, case: Case) -> Check:
        """Resume a copy of what `killed` left; compare all that comes after, and what is kept of before."""
        if reason := unfit(self.cfg, case.mesh):
            return self._failed(case.way, case, "does not fit", 0, reason)
        name = f"{case.way} {mesh_name(case.mesh)} {case.processes}".replace(" ", "-")
        left = RunFolder(self._paths("killed")[0])
        start = max(complete_steps(left.checkpoints))
        shutil.copytree(str(left.path), self._paths(name)[0])
        ended = self._launch(name, case.mesh, case.processes)
        if ended.status:
            return self._failed(case.way, case, "fails", start, ended.error)
        relative = None if case.way == "same mesh" else self.bound(case.mesh)
        found = self._trace(name)
        judged = compare(straight, found, start, self.cfg.train.steps, relative)
        check = self._check(case.way, case, start, judged)
        return dataclasses.replace(check, later=_later(straight, found, start))

    def bound(self, mesh: MeshConfig) -> float:
        """Return the bound of a loss on `mesh` instead of the config's own, relative to it."""
        cfg = self.cfg
        count, devices = params.count(models.build(cfg.model).specs), max(places(mesh), places(cfg.mesh))
        tokens = cfg.train.global_batch_size * cfg.data.seq_len
        return error_bounds.bounds(cfg, count, devices, repeats=tokens).relative

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / name / "run", self.folder / name / "record"

    def _trace(self, name: str) -> Trace:
        workdir, record = self._paths(name)
        found = read(workdir, record)
        if not self.keep and name != "killed":  # of which the others are copies
            shutil.rmtree(workdir)
        return found

    def _launch(self, name: str, mesh: MeshConfig, processes: int, kill_at: int | None = None) -> children.Ended:
        workdir, record = self._paths(name)
        record.parent.mkdir(parents=True, exist_ok=True)
        cfg = dataclasses.replace(self.cfg, mesh=_allowing(self.cfg, mesh))
        order = {
            "config": strict.to_dict(cfg),
            "workdir": str(workdir),
            "record": str(record),
            "rows": round(STEPS_PER_EPOCH * cfg.train.global_batch_size),
            "kill_at": kill_at,
        }
        write_json(record.with_name("order.json"), order)
        arguments = (*self.program, f"--order={record.with_name('order.json')}")
        return children.run(arguments, processes=processes, devices=places(mesh) // processes, logs=record.parent)

    def _failed(self, name: str, case: Case, status: Any, start: int, reason: str) -> Check:
        mesh, dtype = mesh_name(case.mesh), self.cfg.model.dtype
        return Check(name, mesh, case.processes, dtype, status, start, reason.splitlines()[0])

    def _check(self, name: str, case: Case, start: int, judged: Iterable[Judgement]) -> Check:
        found = list(judged)
        differences = [one for one in found if not one.same]
        if differences and self.cfg.model.dropout and differences[0].quantity == "losses" and case.way == "same mesh":
            # State, batch and learning rate agree, or one of them would come first.
            differences[0] = dataclasses.replace(differences[0], quantity="random numbers")
        bounded = max(found, key=lambda one: (one.error, one.bound))
        return Check(
            name=name,
            mesh=mesh_name(case.mesh),
            processes=case.processes,
            dtype=self.cfg.model.dtype,
            status="differs" if differences else "same",
            start=start,
            differences=tuple(differences),
            compared=dict(Counter(one.quantity for one in found)),
            error=bounded.error,
            bound=bounded.bound,
        )


def _later(straight: Trace, found: Trace, start: int) -> float:
    """Return the largest relative difference of the losses after the first step from `start`."""
    pairs = [
        (straight.metrics[step]["train/loss"], found.metrics.get(step)) for step in straight.metrics if step > start + 1
    ]
    return max((abs(row["train/loss"] / loss - 1) for loss, row in pairs if row and loss), default=0.0)


@dataclass
class Report:
    """The certificate of one config: what was run, with what, and what came of it.

    Attributes:
      source, cfg: the config as it was given. shrunk: that of the runs. kill_at: the step of the kill.
      epochs: source -> how many epochs of it the runs see. checks: one for every start, the straight run's first.
    """

    source: str
    cfg: Config
    shrunk: Config
    kill_at: int
    epochs: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """That of the config as it was given."""
        return strict.fingerprint(self.cfg)

    @property
    def exit_code(self) -> int:
        """0 if nothing differs or fails, else 4."""
        return 4 if any(check.status in ("differs", "fails") for check in self.checks) else 0

    @property
    def versions(self) -> dict[str, str]:
        """Those of Python and of the packages that a run records."""
        return {"python": platform.python_version(), **versions(PACKAGES)}

    def quantities(self) -> list[str]:
        """Return what was compared; random numbers are, by the losses, where dropout draws them."""
        found = dict.fromkeys(quantity for check in self.checks for quantity in check.compared)
        return [*found, *(["random numbers"] if self.cfg.model.dropout else [])]

    def as_json(self) -> dict[str, Any]:
        """Return the report with plain values; errors and bounds are relative."""
        cfg = self.shrunk
        return {
            "schema_version": 1,
            "passed": not self.exit_code,
            "config": self.source,
            "fingerprint": self.fingerprint,
            "shrunk": {"fingerprint": strict.fingerprint(cfg), "config": strict.to_dict(cfg)},
            "steps": cfg.train.steps,
            "killed_after": self.kill_at,
            "epochs": self.epochs,
            "random_numbers": f"dropout {cfg.model.dropout}" if cfg.model.dropout else "none are drawn after the start",
            "versions": self.versions,
            "code": git_revision(),
            "platform": "cpu (virtual devices)",
            "checks": [_plain(check) for check in self.checks],
        }


def _plain(check: Check) -> dict[str, Any]:
    listed = [str(one) for one in check.differences[:MAX_LISTED]]
    return dataclasses.asdict(check) | {"differences": listed, "num_differences": len(check.differences)}
