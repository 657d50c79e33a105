"""Make the plan of a config: compile it, or ask the analytic model, and say what follows."""

from dataclasses import dataclass
from typing import Any

from bigjax import sharding
from bigjax.config import Config
from bigjax.errors import UserError
from bigjax.models.attention.masks import AttentionError
from bigjax.preflight.plan import candidates, compiler, defaults, devices, program, report
from bigjax.preflight.plan.analytic import estimate as analytic
from bigjax.preflight.plan.compiled import compile_and_read
from bigjax.preflight.plan.compiler import Outcome
from bigjax.preflight.plan.page import gib
from bigjax.run.chips import Topology

FITS, REPLICATED, TOO_LARGE = 0, 3, 5


@dataclass(frozen=True)
class Planner:
    """Makes plans.

    Attributes:
      source: where the config is from, for the report. analytic: whether to do without the compiler.
      timeout_s: seconds that one compilation may take. run_tokens: plan a run of so many tokens, not `train.steps`.
      steps_per_epoch: batches that the text makes, if it was read.
    """

    topology: Topology
    source: str
    analytic: bool = False
    timeout_s: float = 1800.0
    run_tokens: float | None = None
    steps_per_epoch: float | None = None

    def plan(self, cfg: Config, *, quick: bool = False) -> dict[str, Any]:
        """Return the report of `cfg`, compiled unless `analytic`; `quick` at the lowest optimisation level.

        Raises:
          UserError: the config does not fit the mesh, or the compiler failed.
        """
        cfg, chosen = defaults.resolved(cfg, self.topology)
        built = self._program(cfg)  # what does not fit the mesh fails before the compiler starts
        if self.analytic:
            return self._judge(built, None) | {"auto": chosen}
        outcome = compiler.start(cfg, self.topology, quick=quick).wait(self.timeout_s)
        if outcome.failure:
            raise UserError(f"{outcome.failure}; --analytic plans without the compiler")
        return self._judge(built, outcome) | {"auto": chosen}

    def judge(self, cfg: Config, outcome: Outcome | None) -> dict[str, Any]:
        """Return the report of a compilation, or of the analytic model if there was none."""
        return self._judge(self._program(cfg), outcome)

    def _judge(self, built: program.Program, outcome: Outcome | None) -> dict[str, Any]:
        found = report.build(
            built,
            self.topology,
            analytic.estimate(built.cfg, dict(built.mesh.shape)),
            outcome,
            config=self.source,
            run_tokens=self.run_tokens,
            steps_per_epoch=self.steps_per_epoch,
        )
        return found | self._verdict(built.cfg, found)

    def _program(self, cfg: Config) -> program.Program:
        sizes = sharding.mesh_shape(cfg.mesh, self.topology.num_devices)
        if self.topology.num_slices not in (1, sizes["slice"]):
            raise sharding.ShardingError(
                f"the devices form {self.topology.num_slices} slices, but mesh.slice={sizes['slice']}"
            )
        # A mesh without devices cannot tell what a kernel runs on.
        if problem := candidates.kernel_problem(cfg, cfg.model.attention, self.topology.platform):
            raise AttentionError(problem)
        return program.build(cfg, sharding.abstract_mesh(sizes))

    def _verdict(self, cfg: Config, found: dict[str, Any]) -> dict[str, Any]:
        needed, has = found["hbm_bytes_per_chip_needed"], found["hbm_bytes_per_chip"]
        source = found["source"]["memory"]
        if found["fits"]:
            verdict = f"FITS: {gib(needed)} of {gib(has)} a chip, {gib(has - needed)} to spare [{source}]"
            return {"verdict": verdict, "advice": []}
        verdict = f"DOES NOT FIT: needs {gib(needed)} a chip, which has {gib(has)} [{source}]"
        return {"verdict": verdict, "advice": candidates.savings(cfg, self.topology, needed)}


def of_traced(cfg: Config, traced: Any, mesh: Any, source: str, steps_per_epoch: float) -> dict[str, Any]:
    """Compile a traced train step on the devices at hand; return its report.

    Raises:
      PlanError: there are no figures for the devices.
    """
    topology = devices.at_hand(list(mesh.devices.flat))
    _, found = compile_and_read(traced.lower(), dict(mesh.shape))
    return Planner(topology, source, steps_per_epoch=steps_per_epoch).judge(cfg, Outcome(compiled=found))


def exit_code(found: dict[str, Any]) -> int:
    """Return the exit status that a report stands for: silent replication comes first."""
    if found["silent_replication"]:
        return REPLICATED
    return FITS if found["fits"] else TOO_LARGE
