"""Is a run that was killed and resumed the run that nothing disturbed?

The config, shrunk (same code, small sizes), is trained by the real launcher on its own text, of which an epoch is
shortened to two and a half steps: straight through; then until SIGKILL, and resumed on the same mesh, on other meshes
and by several processes. On the same mesh everything must be bit-identical. Elsewhere what was restored and every
batch, counter and learning rate must be, and the loss of the first step is within a bound derived from float rounding.
The runs are processes of their own on virtual CPU devices, and take some ten seconds each.

Exit status: 0 all as it should be; 1 a bug; 2 bad input; 4 something differs, or a resumed run fails.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from bigjax.errors import UserError

from .. import cli

EXAMPLES = (
    "python -m experiments.check resume --config=quickstart",
    "python -m experiments.check resume --config=mine.py --steps=20 --kill_at=13 --out=resume.json",
    "python -m experiments.check resume --config=mine.py --meshes='data=2;data=4,tensor=2' --processes=0",
)

MESHES = "fsdp=2;data=2,fsdp=2,tensor=2;data=1"
ROWS_SPLIT = "fsdp=2,context=2"
"""The mesh that is resumed on, too, where the family can split rows."""

STAGES = "stage=2,data=2"
"""Another, where the layers can be split into stages."""

LAUNCHER = ("-m", f"{__package__}.witnessed_train")


def define_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check resume`."""
    flags.DEFINE_integer("steps", 12, "length of a run, unless the config's is shorter", flag_values=flag_values)
    flags.DEFINE_integer(
        "kill_at", None, "kill after this step; two thirds of --steps if absent", flag_values=flag_values
    )
    meshes = f"the mesh to train on, then those to resume on, separated by ';'; {MESHES} if absent, and {ROWS_SPLIT}"
    flags.DEFINE_string("meshes", None, f"{meshes} where rows can be split", flag_values=flag_values)
    flags.DEFINE_integer("processes", 2, "also resume by so many processes; 0: do not", flag_values=flag_values)
    flags.DEFINE_string("workdir", None, "keep the runs, in this new folder", flag_values=flag_values)
    flags.DEFINE_string("out", None, "also write the certificate to this JSON file", flag_values=flag_values)


def run(flag_values: flags.FlagValues) -> int:
    """Train, kill, resume and compare; print what came of it."""
    cfg, out = cli.load_config(flag_values.config), cli.out_path(flag_values)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the devices at hand are not used, and stay free
    from bigjax.preflight.equivalence.meshes import parse
    from bigjax.preflight.resume import trial as resume

    chosen = MESHES if flag_values.meshes is None else flag_values.meshes
    if flag_values.meshes is None and "context" in cfg.model.named_family.mesh_axes:
        chosen += f";{ROWS_SPLIT}"
    base, *others = [parse(text) for text in chosen.split(";") if text.strip()] or [parse("data=1")]
    steps = min(flag_values.steps, cfg.train.steps)
    kill_at = steps * 2 // 3 if flag_values.kill_at is None else flag_values.kill_at
    exact, *own = resume.small(cfg, steps, kill_at, base)
    if not flag_values["meshes"].present and resume.unfit(exact, parse(STAGES)) is None:
        others.append(parse(STAGES))
    cases = resume.cases(base, others, flag_values.processes)
    for case in cases:
        if (reason := resume.unfit(exact, case.mesh)) and (flag_values["meshes"].present or case.mesh == base):
            raise UserError(f"--meshes: {reason}")
    report = resume.Report(cli.config_of(sys.argv) or "", cfg, (own or [exact])[0], kill_at)
    with _folder(flag_values.workdir) as folder:
        for small, chosen in ((exact, cases), *((small, cases[:1]) for small in own)):
            where = folder / f"{small.model.dtype}_{small.model.matmul}"
            runs = resume.Runs(small, kill_at, where, LAUNCHER, keep=flag_values.workdir is not None)
            straight, check = runs.straight()
            report.epochs = straight.epochs()
            print("\n".join([*([] if report.checks else [_header(report)]), _line(check)]), flush=True)
            report.checks.append(check)
            for check in runs.disturbed(straight, chosen):
                print(_line(check), flush=True)
                report.checks.append(check)
    print(_verdict(report))
    cli.write_out(out, report.as_json())
    return report.exit_code


@contextlib.contextmanager
def _folder(workdir: str | None) -> Iterator[Path]:
    """Open the folder of the runs: a new one that stays, or one that goes."""
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="bigjax-resume-") as name:
            yield Path(name)
        return
    folder = Path(workdir).absolute()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
    yield folder


def _header(report: Any) -> str:
    cfg, epochs = report.shrunk, ", ".join(f"{count:.1f} of {name}" for name, count in report.epochs.items())
    versions = ", ".join(f"{name} {report.versions[name]}" for name in ("python", "jax", "orbax-checkpoint"))
    return (
        f"{report.source}, fingerprint {report.fingerprint}, shrunk: {cfg.model.num_layers} layers, d_model "
        f"{cfg.model.d_model}, {cfg.train.global_batch_size} rows of {cfg.data.seq_len}; {cfg.optim.name}\n"
        f"{cfg.train.steps} steps, epochs: {epochs}; {versions}"
    )


def _line(check: Any) -> str:
    where = f"  {check.dtype:<8} {check.name:<15} {check.mesh:<22} {_processes(check):<11}"
    if check.status in ("fails", "does not fit"):
        return f"{where}  {'FAILS' if check.status == 'fails' else check.status}: {check.reason}"
    if check.status == "differs":
        first, *others = check.differences
        return f"{where}  DIFFERS first in {first}" + (f" (and {len(others)} more)" if others else "")
    if check.name == "straight":
        return f"{where}  its counters are those of its batches"
    if check.name == "killed":
        return f"{where}  by SIGKILL; bit for bit the same until then"
    same = "bit for bit the same"
    if check.bound:
        same = f"loss off by {f'{check.error:.1e}' if check.error else 0}, bound {check.bound:.1e}"
    return f"{where}  resumed after step {check.start}: {same}"


def _verdict(report: Any) -> str:
    bad = next((check for check in report.checks if check.status in ("differs", "fails")), None)
    if bad is None:
        return f"SAME run after a kill at step {report.kill_at}: {', '.join(report.quantities())}"
    what = bad.differences[0] if bad.differences else bad.reason
    return f"NOT THE SAME run: {bad.name}, {bad.mesh}, {_processes(bad)}: {what}"


def _processes(check: Any) -> str:
    return "1 process" if check.processes == 1 else f"{check.processes} processes"
