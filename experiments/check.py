"""Prove, before it costs anything, what a run relies on. The first argument names the check:

  equivalence --config=FILE[:ARG]   every mesh computes the losses, gradients and update of one device
  resume --config=FILE[:ARG]        killed and resumed, also elsewhere, a run goes on as if nothing had been
  checkpoint --workdir=RUN          what is saved is what was written

`python -m experiments.check NAME --help` lists a check's flags. Exit status: 0 all is well; 1 a bug; 2 bad input;
4 something differs or is damaged.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from bigjax.errors import UserError
from bigjax.run_folder import RunFolder
from experiments import check_resume, cli

EQUIVALENCE = """Does every mesh compute what one device computes? The config, shrunk (same code, small sizes), takes
one step on each mesh; the batch, initial parameters, losses, gradients and updated parameters are compared tensor by
tensor, within bounds derived from float rounding. Without --meshes: all ways to split 8 virtual CPU devices, or the
devices at hand, over data, fsdp and tensor.

Exit status: 0 all the same; 1 a bug; 2 bad input; 4 a mesh differs, or its step cannot be traced, compiled or run."""

CHECKPOINT = """Are the checkpoints of a run what was written? Every file is read and compared with its digest.

Exit status: 0 all are sound; 1 a bug; 2 there is nothing to check; 4 damage found."""

EXAMPLES = {
    "equivalence": (
        "python -m experiments.check equivalence --config=configs/llama.py:8b",
        "python -m experiments.check equivalence --config=configs/gpt.py:d12 --meshes='data=8;fsdp=4,tensor=2'",
        "python -m experiments.check equivalence --config=mine.py --meshes=tensor=2,shard_sequence --out=eq.json",
    ),
    "resume": check_resume.EXAMPLES,
    "checkpoint": ("python -m experiments.check checkpoint --workdir=runs/quickstart",),
}


def define_equivalence_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check equivalence`."""
    flags.DEFINE_string("meshes", None, "meshes to check, separated by ';'", flag_values=flag_values)
    flags.DEFINE_string("out", None, "also write the report to this JSON file", flag_values=flag_values)


def equivalence(flag_values: flags.FlagValues) -> int:
    """Check every mesh against one device."""
    cfg = cli.load_config(flag_values.config)
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # read when JAX is imported; devices of other kinds ignore it
    from bigjax import runtime

    runtime.configure_jax()
    import jax

    from bigjax.preflight import equivalence as eq

    asked = [eq.parse(text) for text in (flag_values.meshes or "").split(";") if text.strip()]
    chosen = asked or list(eq.meshes(len(jax.devices())))
    for mesh in chosen:
        eq.devices(mesh)  # too few devices is found before anything compiles
    references, checks = [], []
    for small in eq.small(cfg):
        expected = eq.reference(small)
        references.append(expected)
        print(_header(expected), flush=True)
        for mesh in chosen:
            check = eq.compare(expected, mesh)
            if asked and check.status == "does not fit":
                raise UserError(f"--meshes: {check.mesh} does not fit the shrunk config: {check.reason}")
            checks.append(check)
            print("\n".join(_lines(check)), flush=True)
        # What does not fit is said once, not again for the next dtype.
        unfit = {check.mesh for check in checks if check.status == "does not fit"}
        chosen = [mesh for mesh in chosen if eq.mesh_name(mesh) not in unfit]
    if all(check.status == "does not fit" for check in checks):
        raise UserError("no mesh of these devices fits the shrunk config: the reasons are above")
    report = eq.Report(cli.config_of(sys.argv) or "", tuple(checks), tuple(references))
    print(_verdict(report))
    cli.write_out(Path(flag_values.out) if flag_values.out else None, report.as_json())
    return report.exit_code


def _header(expected: Any) -> str:
    cfg, limits = expected.cfg, expected.bounds
    stored = f" and {limits.stored:,} stored results" if limits.stored else ""
    return (
        f"{cfg.model.dtype}: {cfg.model.num_layers} layers, d_model {cfg.model.d_model}, "
        f"{cfg.train.global_batch_size} rows of {cfg.data.seq_len}; bound {limits.relative:.1e} of a tensor's terms "
        f"(rounding of {limits.terms:,} terms{stored})"
    )


def _lines(check: Any) -> list[str]:
    if check.status in ("does not fit", "fails"):
        what = "does not fit" if check.status == "does not fit" else "FAILS"
        return [f"  {check.mesh:<38} {what}: {check.reason.splitlines()[0]}"]
    if check.status == "same":
        worst = f"largest error/bound {check.largest_ratio:.3f}, {check.largest_at}"
        return [f"  {check.mesh:<38} same    {worst} ({check.seconds:.0f} s)"]
    first, *others = check.differences
    lines = [f"  {check.mesh:<38} DIFFERS first in {first}"]
    lines += [f"{'':<41}then {other}" for other in others]
    wrong = [one.tensor for one in check.differences if one.quantity == "gradient"]
    if first.quantity == "gradient":
        lines.append(f"{'':<41}the losses agree; going backward, {wrong[-1]} is the first gradient that does not")
    return lines


def _verdict(report: Any) -> str:
    count = dict.fromkeys(("same", "differs", "fails", "does not fit"), 0)
    for check in report.checks:
        count[check.status] += 1
    said = ", ".join(f"{number} {status}" for status, number in count.items() if number)
    bad = next((check for check in report.checks if check.status in ("differs", "fails")), None)
    if bad is None:
        return f"SAME as one device: {said}"
    what = bad.differences[0] if bad.differences else bad.reason
    return f"NOT THE SAME as one device: {said}; first on {bad.mesh} in {bad.dtype}: {what}"


def define_checkpoint_flags(flag_values: flags.FlagValues) -> None:
    """Define the flags of `check checkpoint`."""
    flags.DEFINE_string("workdir", None, "the run folder", flag_values=flag_values)


def checkpoint(flag_values: flags.FlagValues) -> int:
    """Print one line for every checkpoint of a run, the newest first."""
    from bigjax.checkpoint_digests import verify

    folder = RunFolder.existing(Path(cli.required(flag_values, "workdir")))
    reports = verify(folder.checkpoints)
    if not reports:
        raise UserError(f"{folder.path} holds no checkpoint")
    for one in reports:
        print(one)
    return 4 if any(one.problems for one in reports) else 0


CHECKS = {
    "equivalence": (equivalence, define_equivalence_flags, EQUIVALENCE, True),
    "resume": (check_resume.run, check_resume.define_flags, check_resume.__doc__, True),
    "checkpoint": (checkpoint, define_checkpoint_flags, CHECKPOINT, False),
}
"""Name -> what runs, its flags, its help, whether it takes --config."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the check that the first argument names; the rest are its flags.

    Raises:
        SystemExit: the exit status is not 0.
    """
    program, *arguments = sys.argv if argv is None else argv
    name = arguments[0] if arguments else ""
    if name in ("-h", "-help", "--help"):
        print(f"{(__doc__ or '').strip()}\n\nExamples:")
        print("\n".join(f"  {example}" for examples in EXAMPLES.values() for example in examples))
        return
    if name not in CHECKS:
        *others, last = CHECKS
        names, near = f"{', '.join(others)} and {last}", difflib.get_close_matches(name, CHECKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = (
            f"there is no check {name!r}" if name and not name.startswith("-") else "the first argument names a check"
        )
        print(f"error: {what}: the checks are {names}{hint}", file=sys.stderr)
        sys.exit(UserError.exit_code)
    run, define_flags, doc, config = CHECKS[name]
    rest = [program, *arguments[1:]]
    cli.main(run, doc=doc, define_flags=define_flags, examples=EXAMPLES[name], config=config, argv=rest)


if __name__ == "__main__":
    main()
